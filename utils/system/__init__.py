"""The machine, the launch and the streams under the program."""
