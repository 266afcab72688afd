"""A run on disk: the one place that distrusts what it reads."""
