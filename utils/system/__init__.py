"""The machine and the launch under the program."""
