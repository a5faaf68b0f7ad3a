"""All that is promised about files: where they lie, durable writes, locks, journals, checkpoints, results, notes."""
