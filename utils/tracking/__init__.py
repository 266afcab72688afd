"""Experiment trackers: W&B, TensorBoard and trackio see the same names and the same media."""
