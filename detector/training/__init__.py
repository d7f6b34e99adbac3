"""Training: the trainer, optimisers, schedules, weight averaging, run folders and events."""
