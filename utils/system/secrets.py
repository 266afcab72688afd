"""Keys and passwords in the environment, which must not reach a file, the terminal or a tracker."""

import os
import re

NAMES = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
SHORTEST = 12  # characters; shorter values occur in harmless texts


def secrets() -> dict[str, str]:
    """Variables that are secrets by their name, except paths, which say where one lies."""
    return {
        name: value
        for name, value in os.environ.items()
        if NAMES.search(name) and len(value) >= SHORTEST and value[0] not in "/~."
    }


def named_secret(text: str) -> str | None:
    """The variable whose value occurs in the text, if any."""
    return next((name for name, value in secrets().items() if value in text), None)


def without_secrets(text: str) -> str:
    """The text with each secret replaced by the name of its variable."""
    for name, value in secrets().items():
        text = text.replace(value, f"<{name}>")
    return text
