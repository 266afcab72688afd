"""Predictions of whole splits on any number of processes, and what they are worth."""
