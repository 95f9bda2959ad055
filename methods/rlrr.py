"""Low-Rank Rescaled Vision Transformer Fine-Tuning: A Residual Design Approach (arXiv:2403.19067).

``y = (W0 + diag(l) W0 diag(r)) x + b0 + f`` with trained l (out,), r (in,) and f (out,), where W0 is the residual.
"""

from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from backbones.blocks import (
    ATTENTION_INPUTS,
    ATTENTION_OUTPUTS,
    CHANNELS_FIRST,
    MLP_INPUTS,
    MLP_OUTPUTS,
    attention_blocks,
    layers_named,
)
from backbones.inject import (
    Backbone,
    attach,
    detach,
    merge_parametrized,
    modules_with,
    parametrize_in_place,
)
from backbones.projections import attention_rows
from methods.core.base import PEFTMethod
from methods.layers.ssf_layers import ScaleShift

STD = 0.02  # of the initial scales and shifts of norms, as in SSF


class RescaledWeight(nn.Module):
    """Weight ``W + diag(l) W diag(r)``, with an r of its own for each of queries, keys and values.

    Args:
        linear: Layer of W (out, in).
        blocks: Number of the block of each row (out,), for a layer that computes several; None for one block.
        count: Number of blocks.
    """

    blocks: Tensor | None

    def __init__(self, linear: nn.Linear, blocks: Tensor | None, count: int) -> None:
        super().__init__()
        outputs, inputs = linear.out_features, linear.in_features
        self.register_buffer("blocks", blocks, persistent=False)
        # Kaiming uniform of l (out, 1) and r (1, in), as in the published code
        self.l = nn.Parameter(torch.empty(outputs).uniform_(-sqrt(6), sqrt(6)))
        self.r = nn.Parameter(torch.empty(count * inputs).uniform_(-sqrt(6 / inputs), sqrt(6 / inputs)))

    def forward(self, weight: Tensor) -> Tensor:
        r = self.r.view(-1, weight.shape[1])
        factors = self.l[:, None] * (r if self.blocks is None else r[self.blocks])
        return torch.addcmul(weight, weight, factors).to(weight.dtype)


class ShiftedBias(nn.Module):
    """Bias ``b + f``."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.f = nn.Parameter(torch.zeros(outputs))

    def forward(self, bias: Tensor) -> Tensor:
        return (bias + self.f).to(bias.dtype)


class RLRR(PEFTMethod):
    """Low-rank rescaling with a residual (Dong et al., CVPR 2024, arXiv:2403.19067).

    It rescales all linear layers of attention and MLP. The norms before them, the final norm and the patch embedding
    get scales and shifts as in SSF. A layer without a bias gets no shift, because no merged layer could hold it.
    The backward pass keeps the rescaled weight of each layer, beside the frozen one.
    """

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        blocks, used, rows = attention_blocks(backbone), set(self.used_names()), attention_rows(backbone)
        names = {module: name for name, module in backbone.named_modules()}
        linears = [linear for block in blocks for linear in block_layers(block)]
        linears = [linear for linear in linears if f"{names[linear]}.weight" in used]
        if not linears:
            raise ValueError(
                "RLRR rescales the linear layers of attention and MLP, and "
                f"{type(backbone).__name__} has none whose names are known: use ssf, lora or bitfit"
            )
        for layer in scaled_layers(backbone, blocks):
            if {f"{names[layer]}.weight", f"{names[layer]}.bias"} <= used:
                attach(layer, "rlrr", ScaleShift(len(layer.weight), STD, isinstance(layer, nn.Conv2d)))
        for linear in linears:
            parts = block_numbers([*rows.get(names[linear], {}).values()], linear)
            parametrize_in_place(linear, "weight", "rlrr", RescaledWeight(linear, *parts))
            if linear._parameters["bias"] is not None:
                parametrize_in_place(linear, "bias", "rlrr_shift", ShiftedBias(linear.out_features))

    def merge_into(self, backbone: Backbone) -> None:
        merge_parametrized(backbone)
        for layer in modules_with(backbone, "rlrr"):
            op: Any = detach(layer, "rlrr")
            layer.weight.mul_(op.scale.view(-1, *[1] * (layer.weight.dim() - 1)))
            layer.bias.mul_(op.scale).add_(op.shift)
        super().merge_into(backbone)


def block_layers(block: Any) -> list[nn.Linear]:
    """Linear layers of the attention and of the MLP of a transformer block."""
    found = layers_named(block.attn, (*ATTENTION_INPUTS, *ATTENTION_OUTPUTS))
    found += layers_named(block.mlp, (*MLP_INPUTS, *MLP_OUTPUTS))
    return [layer for layer in found if isinstance(layer, nn.Linear)]


def scaled_layers(backbone: Backbone, blocks: list[Any]) -> list[Any]:
    """Norms of the blocks, the final norm, and the convolution of the patch embedding."""
    norms = [getattr(block, name, None) for block in blocks for name in ("norm1", "norm2")]
    norms.append(getattr(backbone, "norm", None))
    stem = getattr(getattr(backbone, "patch_embed", None), "proj", None)
    found = [norm for norm in norms if isinstance(norm, nn.LayerNorm) and not isinstance(norm, CHANNELS_FIRST)]
    return [*found, stem] if type(stem) is nn.Conv2d else found


def block_numbers(parts: list[Tensor], linear: nn.Linear) -> tuple[Tensor | None, int]:
    """Number of the part of each row (out,), and the number of parts; None and 1 for a layer that is not split.

    Args:
        parts: Rows of queries, keys and values; not used unless they are all rows.
        linear: The layer.
    """
    if len(parts) < 2 or sum(map(len, parts)) != linear.out_features:
        return None, 1
    numbers = torch.empty(linear.out_features, dtype=torch.long, device="cpu")
    for number, rows in enumerate(parts):
        numbers[rows] = number
    return numbers.to(linear.weight.device), len(parts)
