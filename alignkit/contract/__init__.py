"""What a plugin sees, and no more: kinds, settings, methods, the stage, events, rewards, judges, hooks."""
