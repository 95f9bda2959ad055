"""Mixout: Effective Regularization to Finetune Large-scale Pretrained Language Models (arXiv:1909.11299).

``W' = W0 + dropout(W - W0)``: in each forward pass, random entries have their pretrained values.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.inject import Backbone, merge_parametrized, parametrize_in_place
from methods.core.base import PEFTMethod
from methods.layers.operation import Operation


class MixedDifference(Operation):
    """``dropout(W - W0)`` in the dtype of W0; keeps one byte of each entry for the backward pass."""

    @staticmethod
    def forward(ctx: Any, delta: Tensor, probability: float, dtype: torch.dtype) -> Tensor:
        factors = F.dropout(torch.ones_like(delta), probability)  # 0 or 1 / (1 - q)
        ctx.save_for_backward(factors != 0)
        ctx.probability, ctx.dtype = probability, delta.dtype
        return (delta * factors).to(dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (kept,) = ctx.saved_tensors
        return g.to(ctx.dtype) * kept.to(ctx.dtype).div_(1 - ctx.probability), None, None


class Mix(nn.Module):
    """``W0 + dropout(W - W0)``, which is ``((1 - B) W + B W0 - q W0) / (1 - q)`` with B of probability q.

    Args:
        weight: The pretrained W0.
        probability: The probability q.
    """

    def __init__(self, weight: Tensor, probability: float) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.zeros_like(weight, dtype=torch.float32))
        self.probability = probability

    def forward(self, weight: Tensor) -> Tensor:
        if not self.training or not self.probability:
            return weight + self.delta.to(weight.dtype)
        return weight + MixedDifference.apply(self.delta, self.probability, weight.dtype)


class Mixout(PEFTMethod):
    """Mixout (Lee et al., ICLR 2020, arXiv:1909.11299).

    Every parameter trains. Weights of linear and convolutional layers are mixed, as in the authors' code. Of these
    layers the difference ``W - W0`` trains, so that weight decay pulls W towards W0 and not towards zero.

    Args:
        mixout_probability: Probability q that an entry has its pretrained value in a forward pass of the training.
    """

    def __init__(self, mixout_probability: float = 0.9, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= mixout_probability < 1:
            raise ValueError(
                f"mixout_probability={mixout_probability}: expected a probability of at least 0 and below 1; at 1 "
                "nothing would train"
            )
        self.mixout_probability = mixout_probability

    def mixed(self) -> list[str]:
        """Names of the mixed weights."""
        layers = {f"{n}.weight" for n, m in self.backbone.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
        heads = self.head_prefixes
        return [n for n in self.used_names() if n in layers and not f"backbone.{n}".startswith(heads)]

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        for name in self.mixed():
            module = backbone.get_submodule(name.removesuffix(".weight"))
            parametrize_in_place(module, "weight", "mixout", Mix(module.weight, self.mixout_probability))

    def trainable_names(self) -> Iterable[str]:
        mixed = self.mixed()
        return [n for n in self.used_names() if n not in mixed]

    def merge_into(self, backbone: Backbone) -> None:
        merge_parametrized(backbone)
        super().merge_into(backbone)
