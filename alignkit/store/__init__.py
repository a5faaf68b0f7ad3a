"""All that is promised about files: the layout of runs/, durable writes, locks, journals, checkpoints, results, notes."""
