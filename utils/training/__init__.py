"""Training policies: optimizers, schedules, the learning-rate range test, preemption."""
