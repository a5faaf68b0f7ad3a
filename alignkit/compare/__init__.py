"""Comparisons: variants of one stage under the same seeds, measured on the same prompts, with their noise."""
