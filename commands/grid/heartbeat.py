"""Signs of life: a file for each trial that runs, touched by its worker."""

import datetime
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def beating(file: Path, seconds: float) -> Iterator[None]:
    """Touch a file as long as this process lives; afterwards the file is gone.

    Args:
        file: The file.
        seconds: Time between two touches.
    """
    over = threading.Event()
    file.touch()

    def beat() -> None:
        while not over.wait(seconds):
            with suppress(OSError):  # a file system that is away for a moment
                file.touch()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        file.unlink(missing_ok=True)


def silence(file: Path, clock: Path, started: datetime.datetime) -> float:
    """Seconds since a file was touched, by the clock of the file system that all workers share.

    Args:
        file: The file.
        clock: Any file beside it, whose new time is the present.
        started: When the trial began, for a worker that was killed before its first touch.
    """
    clock.touch()
    try:
        return clock.stat().st_mtime - file.stat().st_mtime
    except FileNotFoundError:
        return (datetime.datetime.now() - started).total_seconds()
