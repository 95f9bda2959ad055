"""Failures of a run that only the user can mend, in the words of this project."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException

from commands.lightning.errors import Failed, own_error

COMPILER = ("torch._dynamo.", "torch._inductor.")
KILLED_WORKER = re.compile(r"DataLoader worker \(pid.*(exited unexpectedly|is killed by signal)", re.DOTALL)


@contextmanager
def trainer_refusals() -> Iterator[None]:
    """Turn refusals of Lightning's trainer into errors of this project.

    Raises:
        ValueError: With the trainer's message.
    """
    try:
        yield
    except (MisconfigurationException, ValueError, TypeError) as error:
        if own_error(error) is not None:
            raise
        raise ValueError(f"trainer: {error}") from error


@contextmanager
def run_failures(options: Namespace) -> Iterator[None]:
    """Turn failures of a run that only the user can mend into errors of this project.

    Args:
        options: Parsed options of the subcommand.

    Raises:
        Failed: With a remedy, if a GPU has no memory left, a worker of a loader was killed, W&B does not answer,
            torch.compile fails, or Lightning refuses an option.
    """
    try:
        yield
    except Exception as error:
        message = message_of(error, options)
        if message is None:
            raise
        raise Failed(message) from error


def message_of(error: Exception, options: Namespace) -> str | None:
    """Message about a failure of a library, or None if it is not one that the user can mend."""
    first = str(error).partition("\n")[0].partition(". ")[0]
    if isinstance(error, torch.OutOfMemoryError):
        return f"{first}: {memory(options)}"
    if isinstance(error, MisconfigurationException):
        return f"trainer: {error}"
    if isinstance(error, RuntimeError) and KILLED_WORKER.search(str(error)):
        return (
            f"{first}: the system kills workers where memory or /dev/shm runs out. Pass a smaller --data.num_workers "
            "(0 loads in the main process) or a smaller --data.batch_size"
        )
    if type(error).__module__.startswith(COMPILER):
        return f"compile={options.get('compile')}: {first}; leave compile out"
    if type(error).__module__.startswith("wandb."):  # not imported, because a run without its logger need not have it
        return f"W&B: {first}. With WANDB_MODE=offline a run needs no server"
    return None


def memory(options: Namespace) -> str:
    """What a run held on the GPU, and how it would hold less."""
    method = options.model.class_path.rpartition(".")[2]
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    return (
        f"{method} with data.batch_size={options.data.init_args.get('batch_size')} held {peak:.1f} GiB at its peak. "
        "Pass a smaller --data.batch_size, with --trainer.accumulate_grad_batches for the same effective one, or "
        "--trainer.precision bf16-mixed"
    )
