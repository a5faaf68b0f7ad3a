"""Running a plan: stages started, watched, stopped and resumed, each in a process of its own."""
