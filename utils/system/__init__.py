"""The machine under the program: errors, files, memory, processes, the launch."""
