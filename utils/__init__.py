"""What both scripts are made of, a package per layer."""
