"""Untrusted names in Markdown."""

import re


def as_text(name: str) -> str:
    """A name that Markdown shows literally, in a table too: what could be markup becomes an entity."""
    return re.sub(r"[^\w \-.,]|_", lambda found: f"&#{ord(found[0])};", " ".join(name.split()))
