"""Keys and passwords of the environment, which must not end up in a file, a line on the screen or a tracker."""

import os
import re

NAMES = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
SHORTEST = 12  # characters; a shorter value is in many harmless texts


def secrets() -> dict[str, str]:
    """The environment's variables that are secrets by their name. A path is none: it says where one lies."""
    return {
        name: value
        for name, value in os.environ.items()
        if NAMES.search(name) and len(value) >= SHORTEST and value[0] not in "/~."
    }


def named_secret(text: str) -> str | None:
    """The variable whose value is in the text, if any."""
    return next((name for name, value in secrets().items() if value in text), None)


def without_secrets(text: str) -> str:
    """The text with the name of its variable in place of each secret."""
    for name, value in secrets().items():
        text = text.replace(value, f"<{name}>")
    return text
