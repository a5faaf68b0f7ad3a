"""Everything for people's eyes: plans, methods, rows, the console while a run goes on, the report."""
