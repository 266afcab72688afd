"""Class activation maps: methods, layers, maps and how faithful they are."""
