"""Stop of a fit before an update by a non-finite loss."""

import os
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import Tensor, distributed

from lightning_modules.host_copy import HostCopy


class StopOnNonFiniteLoss(Callback):
    """Stops a fit with a loss of NaN or infinity before the optimizer uses its gradient.

    The flag is copied to the host during the backward pass, so that a GPU does not wait for it. If one rank stops, all
    ranks stop, because the averaged gradient would bring its NaN to all of them.
    """

    def __init__(self) -> None:
        self.flags: list[HostCopy] = []

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        finite = loss.detach().isfinite().float()
        if distributed.is_initialized():
            distributed.all_reduce(finite, distributed.ReduceOp.MIN)
        self.flags.append(HostCopy(finite))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        flags, self.flags = self.flags, []
        if not all(bool(flag.read()) for flag in flags):
            raise FloatingPointError(
                f"train/loss is NaN or infinite at step {trainer.global_step} (epoch {trainer.current_epoch}): stopped "
                f"before the update. Last good checkpoint: {last_checkpoint(trainer) or 'none yet'}. "
                "Try a smaller --model.lr, a longer --model.warmup_epochs or --trainer.gradient_clip_val 1"
            )


def last_checkpoint(trainer: Trainer) -> str:
    """Path of the newest checkpoint that the trainer has written, or an empty string."""
    callbacks: list[Any] = trainer.checkpoint_callbacks
    paths = [path for callback in callbacks for path in (callback.last_model_path, callback.best_model_path) if path]
    return max(paths, key=os.path.getmtime, default="")
