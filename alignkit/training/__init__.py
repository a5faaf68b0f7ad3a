"""What methods are built of: models, encoding, packed passes, sampling, scores, losses, steps, saving."""
