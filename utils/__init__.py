"""What both scripts share: options, errors, checkpoints, tracking, evaluation, metrics."""
