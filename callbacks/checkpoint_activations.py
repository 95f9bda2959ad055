"""Activations that are computed again in the backward pass, instead of kept for it."""

from typing import cast

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.measures import SavedBytes
from callbacks.scoring.undisturbed import eagerly, unchanged
from lightning_modules.adapted import AdaptedTask


class CheckpointActivations(Callback):
    """Keep the input of each block for the backward pass, and compute the activations inside the block again.

    Gradients are equal, also with dropout and drop path, because random states are restored for the second computation.
    A step needs less memory and one more forward pass.

    Args:
        active: Whether to do so.
    """

    def __init__(self, active: bool = False) -> None:
        self.active, self.recomputes = active, False
        self.statistics: list[tuple[Tensor, Tensor]] = []  # of each BatchNorm that trains, with a copy

    def check(self, task: AdaptedTask) -> None:
        """Refuse a network without blocks that can be computed again.

        Raises:
            ValueError: With the class of the network.
        """
        if self.active:
            task.recompute(True)
            task.recompute(False)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.check(cast(AdaptedTask, pl_module))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to compute activations again.

        Raises:
            ValueError: If the gradients of the method do not need activations inside the blocks.
        """
        if not self.active:
            return
        task = cast(AdaptedTask, pl_module)
        before = kept_bytes(task)
        task.recompute(True)
        self.recomputes = True
        if kept_bytes(task) >= before:
            raise ValueError(
                f"checkpoint_activations: the gradients of {task.method_name()} need no activations inside the blocks "
                f"of {type(task.backbone).__name__}, so that it would cost time and save nothing; leave it out"
            )

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Copy the statistics of BatchNorms, because the second computation of a block changes them once more."""
        for module in pl_module.modules() if self.recomputes else ():
            if module.training and "running_var" in module._buffers:
                self.statistics += [(buffer, buffer.clone()) for buffer in module.buffers(recurse=False)]

    @torch.no_grad()
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for buffer, value in self.statistics:
            buffer.copy_(value)
        self.statistics = []

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.recomputes:
            cast(AdaptedTask, pl_module).recompute(False)
        self.recomputes = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.statistics = []
        self.teardown(trainer, pl_module, "")


def kept_bytes(task: AdaptedTask) -> int:
    """Bytes that autograd keeps in a forward pass of one sample in eval mode; the model does not change."""
    with unchanged(task), torch.enable_grad(), eagerly(), SavedBytes(task) as saved:
        task.eval()
        outputs = task(task.example_batch().inputs)
    del outputs  # the graph must live until all is counted
    return saved.bytes
