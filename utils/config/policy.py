"""The option `policy`: automatic augmentation, written in one word such as `trivial`, `rand:2,9` or `auto:cifar10`."""

import re
from typing import Literal, NamedTuple

from utils.system.errors import UserError, did_you_mean

TABLES = ("imagenet", "cifar10", "svhn")  # AutoAugment's, named after the data set that each was found on
MOST_OPERATIONS = 10
LARGEST_MAGNITUDE = 30  # the last of the 31 bins from which a magnitude is taken
ALLOWED = f"it must be none, trivial, rand:N,M (such as rand:2,9) or auto:{'|'.join(TABLES)}"


class Policy(NamedTuple):
    """What `policy` asks for.

    Attributes:
        kind: trivial (TrivialAugmentWide), rand (RandAugment) or auto (AutoAugment).
        table: of AutoAugment, one of TABLES; empty for the others.
        operations: how many an image gets, one after the other.
        magnitude: bin of RandAugment's magnitudes, 0 to LARGEST_MAGNITUDE; None if the policy chooses it.
    """

    kind: Literal["trivial", "rand", "auto"]
    table: str = ""
    operations: int = 1
    magnitude: int | None = None


def parse_policy(word: str) -> Policy | None:
    """The policy that a word stands for; None for `none`. `rand` is `rand:2,9`, `auto` is `auto:imagenet`.

    Raises UserError naming what is allowed.
    """
    if word == "none":
        return None
    if word == "trivial":
        return Policy("trivial")
    name, colon, argument = word.partition(":")
    if name == "rand":
        return _rand(word, argument if colon else "2,9")
    if name == "auto":
        return _auto(word, argument if colon else TABLES[0])
    hint = did_you_mean(name, ["none", "trivial", "rand", "auto"])
    raise UserError(f"policy: {word!r} is not allowed; {hint}{ALLOWED}")


def _rand(word: str, argument: str) -> Policy:
    found = re.fullmatch(r"([0-9]{1,9}),([0-9]{1,9})", argument)
    if found is None:
        raise UserError(f"policy: {word!r} is not allowed; it must be rand:N,M, such as rand:2,9")
    operations, magnitude = int(found[1]), int(found[2])
    if not 1 <= operations <= MOST_OPERATIONS or magnitude > LARGEST_MAGNITUDE:
        raise UserError(
            f"policy: {word!r} is not allowed; rand:N,M takes 1 to {MOST_OPERATIONS} operations and a magnitude of 0 "
            f"to {LARGEST_MAGNITUDE}, such as rand:2,9"
        )
    return Policy("rand", operations=operations, magnitude=magnitude)


def _auto(word: str, table: str) -> Policy:
    if table not in TABLES:
        hint = did_you_mean(table, list(TABLES))
        raise UserError(f"policy: {word!r} is not allowed; {hint}auto:TABLE takes {', '.join(TABLES)}")
    return Policy("auto", table, operations=2)
