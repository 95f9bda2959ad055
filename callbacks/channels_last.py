"""Memory format of convolutional networks."""

from typing import cast

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_modules.adapted import AdaptedTask


class ChannelsLast(Callback):
    """Store weights and maps of convolutions with the channels as the last dimension in memory, in this run.

    A convolution with such a weight or such an input also makes such an output.

    Args:
        active: Whether to do so.
    """

    def __init__(self, active: bool = False) -> None:
        self.active = active
        self.first: nn.Module | None = None  # first convolution of the converted network
        self.hook: RemovableHandle | None = None  # its hook

    def check(self, task: AdaptedTask) -> None:
        """Refuse a network without convolutions behind its first layer.

        Raises:
            ValueError: With the class of the network.
        """
        if self.active and len(convolutions(task)) < 2:
            raise ValueError(
                f"channels_last: {type(task.backbone).__name__} has no convolutions behind the layer that reads the "
                "images, so that it has no effect; leave it out, or use a convolutional network"
            )

    def convert(self, trainer: Trainer, pl_module: LightningModule, stage: str = "") -> None:
        """Convert weights and images, also for a backbone that a checkpoint has built anew."""
        if not self.active:
            return
        task = cast(AdaptedTask, pl_module)
        self.check(task)
        first = convolutions(task)[0]
        if first is self.first:
            return  # a validation inside a fit
        self.restore(task)
        task.to(memory_format=torch.channels_last)
        # the images too, because some methods compute each weight anew, in the usual format
        self.first, self.hook = first, first.register_forward_pre_hook(to_channels_last)

    # before DDP, which copies the format into its buffers, and after the checkpoint of an evaluation
    setup = on_validation_start = on_test_start = on_predict_start = convert

    def restore(self, task: LightningModule) -> None:
        """Convert back."""
        if self.hook is not None:
            self.hook.remove()
            self.first = self.hook = None
            task.to(memory_format=torch.contiguous_format)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.restore(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.restore(pl_module)


def convolutions(task: AdaptedTask) -> list[nn.Module]:
    """Convolutions of the backbone; the first one reads the images."""
    return [module for module in task.backbone.modules() if isinstance(module, nn.Conv2d)]


def to_channels_last(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    """Forward pre-hook: the input map (B, C, H, W) in the other format, with equal values."""
    return (args[0].contiguous(memory_format=torch.channels_last),)
