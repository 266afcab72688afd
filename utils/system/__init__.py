"""The system around the program: its streams, its folders."""
