"""Sources: from a table of a recipe to checked rows or a model on this machine."""
