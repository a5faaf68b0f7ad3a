"""What a plugin sees: kinds, settings, methods, the stage, hooks."""
