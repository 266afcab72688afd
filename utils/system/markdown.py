"""Names that may hold anything, in Markdown."""

import re


def as_text(name: str) -> str:
    """A name as Markdown shows it as it is, in a table too: what could be markup is written as an entity."""
    return re.sub(r"[^\w \-.,]|_", lambda found: f"&#{ord(found[0])};", " ".join(name.split()))
