"""Failures of libraries become one message with a remedy; defects keep their traceback."""

import pytest
import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch._inductor.exc import InvalidCxxCompiler
from wandb.errors import CommError

from commands.lightning.errors import Failed
from commands.lightning.failures import run_failures, trainer_refusals

OPTIONS = Namespace(
    compile="default",
    model=Namespace(class_path="methods.SSFClassification"),
    data=Namespace(init_args=Namespace(batch_size=64)),
)


@pytest.mark.parametrize(
    ("error", "messages"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB."),
            ["CUDA out of memory: SSFClassification", "batch_size=64", "accumulate_grad_batches", "bf16-mixed"],
        ),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), ["--data.num_workers", "/dev/shm"]),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), ["--data.num_workers"]),
        (MisconfigurationException("no such stage"), ["trainer: no such stage"]),
        (
            InvalidCxxCompiler(),
            ["compile=default: No working C++ compiler found in"],
        ),
        (CommError("no answer\nmore"), ["W&B: no answer. With WANDB_MODE=offline"]),
    ],
)
def test_failures_with_a_remedy(error: Exception, messages: list[str]) -> None:
    with pytest.raises(Failed) as caught, run_failures(OPTIONS):
        raise error
    assert all(message in str(caught.value) for message in messages), caught.value
    assert "\n" not in str(caught.value)


def test_refusals_of_lightning_in_a_run() -> None:
    from lightning.pytorch.loggers import CSVLogger
    from lightning.pytorch.utilities.model_helpers import is_overridden

    with pytest.raises(Failed, match="trainer: Expected a parent"), run_failures(OPTIONS):
        is_overridden("x", CSVLogger("."))  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), KeyError("x"), ValueError("lr")])
def test_other_errors_stay(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, run_failures(OPTIONS):
        raise error
    assert caught.value is error


def test_refusals_of_the_trainer() -> None:
    with pytest.raises(ValueError, match="trainer: no such strategy"), trainer_refusals():
        raise MisconfigurationException("no such strategy")
