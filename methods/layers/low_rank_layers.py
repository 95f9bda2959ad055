"""Layers of a backbone with a low-rank update: plain linear layers, and layers that read an updated weight."""

from typing import Any

from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.inject import (
    Backbone,
    check_free,
    detach,
    modules_with,
    parametrize_in_place,
    plain_parameter,
    swap_class,
    unparametrize,
)
from methods.layers.low_rank import LowRank, MergedLowRank


class LoRALinear(nn.Linear):
    """A linear layer with a low-rank update."""

    lora: LowRank

    def dense(self) -> Tensor:
        """Frozen weight (out, in)."""
        return self.weight

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Product of x with the frozen weight, without the update."""
        return F.linear(x, self.weight, bias)

    def forward(self, input: Tensor) -> Tensor:
        lora = self.lora
        if lora.drops:
            return lora.add(self.product(input, self.bias), lora.drop_input(input))
        x = input.flatten(0, -2)
        y = MergedLowRank.apply(x, self.weight, self.bias, *lora.factors(), lora.rows, lora.scale)
        return y.view(*input.shape[:-1], y.shape[-1])  # not -1, because the input can have no tokens


def add_low_rank(layer: Any, update: LowRank, linear_class: type[LoRALinear] = LoRALinear) -> None:
    """Add an update as the child ``lora`` of a layer.

    A plain linear layer becomes a ``linear_class``. All other layers read the updated weight in place of the frozen
    one, so that padding or a standardisation of the weight act on it as before.
    """
    if type(layer) is nn.Linear and update.order is None:
        check_free(layer, "lora")
        layer.lora = update
        swap_class(layer, linear_class)
        return
    parametrize_in_place(layer, "weight", "lora", update)
    if update.dropout:
        layer.register_forward_hook(update.hook)


def merge_low_rank(backbone: Backbone) -> None:
    """Add every low-rank update to its weight and make the layers plain again."""
    for layer in modules_with(backbone, "lora"):
        weight = plain_parameter(layer, "weight")
        weight.copy_(layer.lora.merge_into(weight))
        detach(layer, "lora")
        if isinstance(layer, LoRALinear):
            swap_class(layer, nn.Linear)
        else:
            unparametrize(layer, "weight")


def takes_dropout(layer: nn.Module) -> bool:
    """Whether the update of a layer can be computed apart, as dropout needs it."""
    if isinstance(layer, nn.Conv2d):  # a standardised weight is not linear in the update
        return layer.groups == 1 and type(layer) in (nn.Conv2d, Conv2dSame)
    return True
