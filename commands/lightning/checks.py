"""Options of Lightning that cannot work here, refused before anything is built."""

import re
import sys
from typing import Any

from jsonargparse import Namespace

MAX_SEED = 2**32 - 1  # numpy's
MAX_DEVICES = 1024  # of one machine; Lightning starts a process for each
INTERVALS = ("accumulate_grad_batches", "check_val_every_n_epoch", "val_check_interval")  # by which Lightning divides
LENGTHS = ("max_epochs", "max_steps", "limit_train_batches")  # with 0 of them a fit ends before it trains


def check_options(options: Namespace, subcommand: str) -> None:
    """Refuse a seed, an accelerator, a strategy, devices, a length and a compilation that no run can have.

    Args:
        options: Parsed options of the subcommand.
        subcommand: Such as ``fit``.

    Raises:
        ValueError: With the option and what it may be.
    """
    check_seed(options.get("seed_everything"))
    trainer = options.get("trainer") or Namespace()
    check_accelerator(trainer.get("accelerator"))
    check_devices(trainer.get("devices"))
    strategy = trainer.get("strategy")
    if isinstance(strategy, str) and ("spawn" in strategy or "fork" in strategy):
        raise ValueError(f"trainer.strategy={strategy}: no process of a run can be copied into others; expected ddp")
    check_compile(options.get("compile"))
    for name in (*INTERVALS, *(LENGTHS if subcommand == "fit" else ())):
        if trainer.get(name) == 0:
            raise ValueError(f"trainer.{name}=0: expected a number above 0")
    clip = trainer.get("gradient_clip_val")
    if isinstance(clip, (int, float)) and clip < 0:  # Lightning would turn the sign of each gradient
        raise ValueError(f"trainer.gradient_clip_val={clip}: expected a norm of at least 0, or null for no clipping")


def check_seed(seed: Any) -> None:
    """Refuse a seed that numpy does not take."""
    if isinstance(seed, int) and not isinstance(seed, bool) and not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed_everything={seed}: expected a number from 0 to {MAX_SEED}")


def check_accelerator(accelerator: Any) -> None:
    """Refuse several kinds of devices at once, and a GPU where torch sees none."""
    import torch

    if not isinstance(accelerator, str):
        return
    if "," in accelerator:
        raise ValueError(f"trainer.accelerator={accelerator}: expected one kind of device, such as cpu, gpu or auto")
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise ValueError("trainer.accelerator=cuda: torch finds no CUDA device here; expected cpu or auto")
    if accelerator == "gpu" and not torch.cuda.is_available() and not torch.backends.mps.is_available():
        raise ValueError("trainer.accelerator=gpu: torch finds no GPU here; expected cpu or auto")


def check_devices(devices: Any) -> None:
    """Refuse no device at all, and names of devices, which could be of several kinds."""
    expected = "expected a number of devices, indices of one kind such as 0,1, or auto"
    if str(devices).strip() in ("0", "[]", ""):
        raise ValueError(f"trainer.devices={devices}: a run needs a device; {expected}")
    if re.fullmatch(r"\d+", str(devices)) and int(devices) > MAX_DEVICES:
        raise ValueError(f"trainer.devices={devices}: expected at most {MAX_DEVICES:,} devices of a machine")
    named = [word for word in re.findall(r"[^\s,\[\]'\"]+", str(devices)) if not re.fullmatch(r"-?\d+|auto|None", word)]
    if named:
        raise ValueError(
            f"trainer.devices={devices} names {', '.join(named)}; {expected}. --trainer.accelerator names the kind"
        )


def check_compile(mode: Any) -> None:
    """Refuse torch.compile where it does not support the interpreter."""
    import torch._dynamo

    if mode is not None and not torch._dynamo.is_dynamo_supported():
        version = ".".join(map(str, sys.version_info[:3]))
        raise ValueError(
            f"compile={mode}: torch {torch.__version__} has no torch.compile for Python {version}; leave it out"
        )
