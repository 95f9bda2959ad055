"""Failures of a run that only the user can mend, in the words of this project."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException

from checkpoints.atomic import NotWritten
from commands.lightning.errors import Failed, own_error

# a disk or a quota is full, a file system is read-only or takes no file of this size
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
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
    except (MisconfigurationException, ValueError, TypeError, KeyError) as error:  # KeyError for an unknown name
        if own_error(error) is not None:
            raise
        raise ValueError(f"trainer: {error}") from error


@contextmanager
def run_failures(options: Namespace) -> Iterator[None]:
    """Turn failures of a run that only the user can mend into errors of this project.

    Args:
        options: Parsed options of the subcommand.

    Raises:
        Failed: With a remedy, if a GPU has no memory left, a file cannot be written, a worker of a loader was killed,
            W&B does not answer, torch.compile fails, or Lightning refuses an option.
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
    if isinstance(error, NotWritten):
        return f"{error}. {kept(options)}"
    if isinstance(error, OSError) and error.errno in NO_SPACE:  # of a library, such as the writer of metrics.csv
        place = error.filename or options.trainer.default_root_dir
        return f"cannot write {place} ({error.strerror}). {kept(options)}"
    if isinstance(error, MisconfigurationException):
        return f"trainer: {error}"
    if isinstance(error, ValueError) and raised_in(error, "lightning/pytorch/"):
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


def raised_in(error: Exception, folder: str) -> bool:
    """Whether a line below a folder raised an error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and folder in Path(trace.tb_frame.f_code.co_filename).as_posix()


def kept(options: Namespace) -> str:
    """The last checkpoint of a run that could not write a file, and how to go on."""
    last = Path(options.trainer.default_root_dir) / "checkpoints/last.ckpt"
    remedy = "Make room, or pass another folder, --run_root"
    if last.is_file():
        return f"The last checkpoint is whole. {remedy}, and go on with fit --ckpt_path {last}"
    return f"{remedy}, and begin again"


def memory(options: Namespace) -> str:
    """What a run held on the GPU, and how it would hold less."""
    method = options.model.class_path.rpartition(".")[2]
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    return (
        f"{method} with data.batch_size={options.data.init_args.get('batch_size')} held {peak:.1f} GiB at its peak. "
        "Pass a smaller --data.batch_size, with --trainer.accumulate_grad_batches for the same effective one, "
        "--trainer.precision bf16-mixed, or --checkpoint_activations true"
    )
