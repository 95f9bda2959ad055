"""Which errors are shown as one line."""

import json
from pathlib import Path

import pytest

from commands.lightning.errors import EXPECTED, Failed, own_error, shortened


def raised(cause: Exception | None = None, error: Exception | None = None) -> Exception:
    """An error that a line of this project raised."""
    try:
        raise error or ValueError("lr=0: expected a positive number") from cause
    except Exception as caught:
        return caught


def foreign() -> Exception:
    """An error that a library raised."""
    try:
        json.loads("no JSON")
    except ValueError as caught:
        return caught
    raise AssertionError


def test_an_error_of_this_project() -> None:
    error = raised()
    assert own_error(error) is error


def test_an_error_that_a_library_wrapped() -> None:
    inner, outer = raised(), foreign()
    outer.__cause__ = inner
    assert own_error(outer) is inner


def test_an_error_of_a_library() -> None:
    assert own_error(foreign()) is None
    assert own_error(None) is None


def test_a_defect_of_this_project() -> None:
    assert own_error(raised(error=KeyError("defect"))) is None


def test_a_path_that_is_too_long() -> None:
    with pytest.raises(OSError) as found:
        Path("x" * 5000).is_file()
    assert own_error(found.value) is found.value


def test_a_message_is_one_line() -> None:
    assert shortened("data.root=/data/é\n\x1b[2J: no such folder") == "data.root=/data/é\\n\\x1b[2J: no such folder"


def test_long_messages_lose_their_middle() -> None:
    message = shortened(f"begin {'x' * 100_000} end")
    assert message.startswith("begin xxx")
    assert message.endswith("xxx end")
    assert len(message) < 2010


def test_a_failed_run_is_expected() -> None:
    failure = Failed("exit code 3", code=3)
    assert isinstance(failure, EXPECTED)
    assert (str(failure), failure.code, failure.error) == ("exit code 3", 3, None)
    assert not isinstance(KeyError("x"), EXPECTED)
    assert Path(__file__).exists()
