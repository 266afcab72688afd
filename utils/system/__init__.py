"""The system around a training: its launch, processes, threads and compiler."""
