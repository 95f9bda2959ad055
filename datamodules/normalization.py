"""Normalised floats of uint8 pixels."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from datamodules.channels import per_channel

NormalizationName = Literal["model", "imagenet", "inception", "none"]
NORMALIZATIONS = {
    "imagenet": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


class Normalization:
    """Mean and std (C, 1, 1) of pixels from 0 to 255.

    Args:
        name: A key of ``NORMALIZATIONS``, or ``model`` for those of the backbone.
        model: Mean and std of the backbone, for pixels from 0 to 1.
        channels: Number C of channels.
    """

    def __init__(self, name: NormalizationName, model: tuple[Sequence[float], Sequence[float]], channels: int) -> None:
        self.mean, self.std = (per_channel(values, channels) * 255 for values in NORMALIZATIONS.get(name, model))
        self.copies: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, pixels: Tensor) -> Tensor:
        """Floats of uint8 pixels (B, C, H, W), on their device."""
        device = pixels.device
        if device not in self.copies:  # copied once, because a GPU would wait for a copy in every batch
            self.copies[device] = self.mean.to(device), self.std.to(device)
        mean, std = self.copies[device]
        return (pixels - mean) / std

    def settings(self) -> tuple[Any, ...]:
        """Mean and std as plain numbers."""
        return self.mean.tolist(), self.std.tolist()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"copies": {}}  # because worker processes have no GPU
