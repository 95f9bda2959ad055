"""Made up scores of parameters, for methods that choose from data."""

from typing import Any

import torch
from torch import Tensor


def normal(model: Any) -> dict[str, Tensor]:
    """Of either sign, as gradients are."""
    generator = torch.Generator().manual_seed(0)
    shapes = {name: model.backbone.get_parameter(name).shape for name in model.score_targets()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def ascending(model: Any) -> dict[str, Tensor]:
    """Positive and all different: one floating-point number after the other."""
    made, start = {}, 0x30000000
    for name in model.score_targets():
        shape = model.backbone.get_parameter(name).shape
        made[name] = torch.arange(start, start + shape.numel(), dtype=torch.int32).view(torch.float32).view(shape)
        start += shape.numel()
    return made
