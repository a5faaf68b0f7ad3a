"""The embedded default: reviews from a grammar whose score is known, and a tiny model."""
