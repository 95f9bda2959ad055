"""Errors that a user can cause."""

import errno
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Failed(Exception):
    """A run that did not reach its end.

    Args:
        message: One line.
        code: Exit code of the run.
        error: The error that ended it, if it ran in this process.
    """

    def __init__(self, message: str, code: int = 1, error: BaseException | None = None) -> None:
        super().__init__(message)
        self.code, self.error = code, error


LONGEST = 2000  # characters of a message
EXPECTED = (ValueError, TypeError, OSError, FloatingPointError, Failed)
"""Errors that are shown as one line; any other error is a defect, and is shown with its traceback."""


def own_error(error: BaseException | None) -> BaseException | None:
    """The first error of a chain of causes that this project raised on purpose.

    Libraries such as jsonargparse wrap errors. An error counts as raised on purpose if it is one of ``EXPECTED`` and
    was raised by a line of this project, or if a path is too long for the system.

    Args:
        error: The error that was caught.

    Returns:
        The error, or None if a library raised all errors of the chain.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:  # of each look at a path
            return error
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        file = Path(trace.tb_frame.f_code.co_filename).resolve() if trace is not None else Path()
        if isinstance(error, EXPECTED) and file.is_relative_to(ROOT) and ".venv" not in file.relative_to(ROOT).parts:
            return error
        error = error.__cause__
    return None


def shortened(message: str) -> str:
    """Message as one line, without its middle if it is long, because files and options can hold texts of any kind.

    Args:
        message: The message. Characters that move a terminal's cursor, such as a line break, become escapes.
    """
    line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in message)
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 300]} ... {line[-300:]}"
