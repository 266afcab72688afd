"""Time as people say it."""


def duration(seconds: float) -> str:
    """`41.2 s`, `23.9 min` or `2 h 31 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{seconds / 60:.1f} min"
