"""The embedded default: a tiny model and a small domain with a known gold score, so that a recipe needs no download."""
