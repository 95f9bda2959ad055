"""Names that a user may misspell."""

import pytest

from commands.lightning.names import near, nearest


def test_a_known_name() -> None:
    assert nearest("ssf", {"ssf": 1, "lora": 2}, "method") == "ssf"


def test_an_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"^unknown method 'sff'; nearest: ssf; known: lora, ssf$"):
        nearest("sff", ["lora", "ssf"], "method")


def test_nothing_similar() -> None:
    with pytest.raises(ValueError, match=r"^unknown task 'zzz'; known: cifar$"):
        nearest("zzz", ["cifar"], "task")


def test_the_most_similar_first() -> None:
    assert near("max_epoch", ["min_epochs", "max_epochs", "lr"]) == ["max_epochs", "min_epochs"]
