"""Predictions of whole splits on any number of processes, and their scores."""
