"""What can be known before anything is trained: memory, time, disk, rows that do not fit, models that cannot do it."""
