"""Runs of ``train.py`` that other commands start: one at a time, each once."""

import gc
import json
import logging
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from commands.lightning.arguments import pop_flag
from commands.lightning.errors import Failed, own_error
from commands.lightning.folders import ENTRY


def run_once(
    args: list[str], root: Path, *, log: Path | None = None, own_process: bool = True, resume: bool = False
) -> dict[str, Any]:
    """Run a command line below a folder, unless it has finished there before.

    Args:
        args: Subcommand and options, without ``--run_root``.
        root: Folder of this command line alone. An interrupted run in it is begun again.
        log: File that gets the output; the terminal by default.
        own_process: Whether a new process runs it, so that nothing of it is left behind in this one.
        resume: Whether an interrupted fit goes on from its last checkpoint.

    Returns:
        The content of ``result.json``, and the run's ``folder``.

    Raises:
        Failed: If the run fails.
    """
    tested = args[0] == "test" or pop_flag(args, "--test_after_fit")[0] in ("true", "True")
    result = finished(root, tested)
    if result is None:
        checkpoint = newest(root, "checkpoints/last.ckpt") if resume and args[0] == "fit" else None
        more = ["--ckpt_path", str(checkpoint)] if checkpoint is not None else []
        execute([*args, *more, "--run_root", str(root)], log, own_process)
        result = finished(root, tested)
    if result is None:
        raise Failed(f"its run left no result in {root}")
    return result


def finished(root: Path, tested: bool) -> dict[str, Any] | None:
    """Result of the newest finished run below a folder, with its ``folder``.

    Args:
        root: A ``run_root``.
        tested: Whether only a run with test metrics counts.
    """
    file = newest(root, "result.json")
    if file is None:
        return None
    result: dict[str, Any] = json.loads(file.read_text())
    if tested and not any(name.startswith("test/") for name in result):
        return None
    return result | {"folder": str(file.parent)}


def execute(args: list[str], log: Path | None, own_process: bool) -> None:
    """Run a command line to its end.

    Args:
        args: Arguments of ``train.py``.
        log: File to append the output to; the terminal by default.
        own_process: Whether a new process runs it.

    Raises:
        Failed: If the run fails.
    """
    with ExitStack() as stack:
        file = None
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(log.open("a"))
        where = f", see {log}" if log is not None else ""
        if not own_process:
            execute_here(args, file, where)
            return
        code = launch(args, file)
        if code:
            raise Failed(f"{last_error(log) or f'exit code {code}'}{where}", code)


def execute_here(args: list[str], file: TextIO | None, where: str) -> None:
    """Run a command line in this process; see ``execute``."""
    from commands.lightning.cli import GraftCLI

    try:
        with ExitStack() as stack:
            if file is not None:
                stack.enter_context(redirect_stdout(file))
                stack.enter_context(redirect_stderr(file))
                stack.enter_context(quiet_lightning())
            GraftCLI.run(args)
    except SystemExit as stop:
        if stop.code != 2:  # 2 is a command line that cannot be read; all other codes end this process
            raise
        raise Failed(f"its options cannot be read{where}", 2) from stop
    except Exception as error:
        if file is not None:
            file.write(traceback.format_exc())
        cause = own_error(error) or error
        first = str(cause).partition("\n")[0]
        raise Failed(f"{type(cause).__name__}: {first}{where}", error=cause) from error
    finally:
        gc.collect()  # models and loaders of the run


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's information, because its loggers print past a redirected output."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def launch(args: list[str], output: TextIO | None = None) -> int:
    """Run ``train.py`` in a process of its own, which stops when this one is stopped.

    Args:
        args: Arguments of ``train.py``.
        output: File for its output; the terminal by default.

    Returns:
        Its exit code.
    """
    with exit_on_sigterm():
        errors = subprocess.STDOUT if output is not None else None
        process = subprocess.Popen([sys.executable, str(ENTRY), *args], stdout=output, stderr=errors)
        try:
            return process.wait()
        finally:
            stop(process)


def stop(process: "subprocess.Popen[Any]") -> None:
    """End a process with SIGTERM unless it has ended, and wait for it."""
    if process.poll() is None:
        process.terminate()
        process.wait()


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into ``SystemExit`` with its usual code, so that ``finally`` blocks run."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def last_error(log: Path | None) -> str | None:
    """The message of the last ``error:`` line in a log."""
    lines = log.read_text(errors="replace").splitlines() if log is not None else []
    found = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return found[-1] if found else None


def newest(root: Path, file: str) -> Path | None:
    """The newest file of a name in the run folders below ``root``.

    Args:
        root: A ``run_root``.
        file: Path inside a run folder, such as ``result.json``.
    """
    found = sorted(root.glob(f"*/*/*/{file}"), key=lambda path: path.stat().st_mtime_ns)
    return found[-1] if found else None
