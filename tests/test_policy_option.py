"""The words of the option `policy`."""

import pytest

from utils.config.policy import Policy, parse_policy
from utils.system.errors import UserError


@pytest.mark.parametrize(
    ("word", "policy"),
    [
        ("none", None),
        ("trivial", Policy("trivial", "", 1, None)),
        ("rand", Policy("rand", "", 2, 9)),
        ("rand:2,9", Policy("rand", "", 2, 9)),
        ("rand:1,0", Policy("rand", "", 1, 0)),
        ("rand:10,30", Policy("rand", "", 10, 30)),
        ("auto", Policy("auto", "imagenet", 2, None)),
        ("auto:imagenet", Policy("auto", "imagenet", 2, None)),
        ("auto:cifar10", Policy("auto", "cifar10", 2, None)),
        ("auto:svhn", Policy("auto", "svhn", 2, None)),
    ],
)
def test_each_word_stands_for_its_policy(word, policy):
    assert parse_policy(word) == policy


RANGES = "rand:N,M takes 1 to 10 operations and a magnitude of 0 to 30, such as rand:2,9"
FORM = "it must be rand:N,M, such as rand:2,9"
TABLE = "auto:TABLE takes imagenet, cifar10, svhn"
ANY = "it must be none, trivial, rand:N,M (such as rand:2,9) or auto:imagenet|cifar10|svhn"


@pytest.mark.parametrize(
    ("word", "remedy"),
    [
        ("rand:0,9", RANGES),
        ("rand:11,9", RANGES),
        ("rand:2,31", RANGES),
        ("rand:999999999,999999999", RANGES),
        ("rand:", FORM),
        ("rand:2", FORM),
        ("rand:2,", FORM),
        ("rand:2,9,31", FORM),
        ("rand:2;9", FORM),
        ("rand:-1,9", FORM),
        ("rand:2,9.5", FORM),
        ("rand:2,-9", FORM),
        ("rand: 2,9", FORM),
        ("rand:٢,٩", FORM),  # digits of another script
        (f"rand:{'9' * 30},9", FORM),
        ("auto:", TABLE),
        ("auto:cifar100", f"did you mean cifar10? {TABLE}"),
        ("auto:CIFAR10", TABLE),
        ("auto:imagenet,cifar10", TABLE),
        ("trivial:9", ANY),
        ("none:", ANY),
        ("Trivial", ANY),
        ("trivail", ANY),
        ("", ANY),
        ("rand 2,9", ANY),
        ("rand-m9-n2", ANY),
    ],
)
def test_any_other_word_is_refused_in_one_line_that_names_it_and_the_remedy(word, remedy):
    with pytest.raises(UserError) as error:
        parse_policy(word)
    message = str(error.value)
    assert message.startswith(f"policy: {word!r} is not allowed; ")
    assert message.endswith(remedy)
    assert "\n" not in message
