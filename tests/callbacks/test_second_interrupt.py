"""Handler of Ctrl-C after a run has failed."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from callbacks.second_interrupt import SecondInterrupt


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("error", "expected"), [(KeyboardInterrupt(), signal.SIG_DFL), (ValueError(), signal.SIG_IGN)])
def test_only_after_ctrl_c(error: BaseException, expected: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as Lightning does
    nobody: Any = None
    SecondInterrupt().on_exception(nobody, nobody, error)
    assert signal.getsignal(signal.SIGINT) == expected
