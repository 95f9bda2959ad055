"""Repeated keys and exploding aliases are refused wherever YAML is read."""

import jsonargparse
import pytest
import yaml

from commands.lightning import strict_yaml

BOMB = "a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "(?s)'a' stands here a second time; keep one of the two.*line 3"),
        ("b: [{a: 1, a: 2}]", "'a' stands here a second time"),
        (BOMB, "its aliases stand for more than 100,000 values"),
        ("a: &a [*a]", "an alias that stands for itself"),
        ("[" * 100_000, "nesting depth"),
        (f"a: {'9' * 6000}", "4300 digits"),
    ],
)
def test_refused(content: str, message: str) -> None:
    with pytest.raises(yaml.YAMLError, match=message):
        strict_yaml.load(content)


@pytest.mark.parametrize(
    "content", ["", "a: 1\nb: {a: 1}\n", "a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]\n", "1: a\n'1': b\n", "vit_tiny"]
)
def test_accepted(content: str) -> None:
    assert strict_yaml.load(content) == strict_yaml.load_plain(content)


def test_every_parser_uses_it() -> None:
    strict_yaml.use()
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--a", type=dict)
    with pytest.raises(jsonargparse.ArgumentError, match="second time"):
        parser.parse_string("a: {b: 1, b: 2}")
