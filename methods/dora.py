"""DoRA: Weight-Decomposed Low-Rank Adaptation (arXiv:2402.09353).

``W = m (W0 + s B A) / ||W0 + s B A||`` with norms over each row and a trained magnitude m for each row.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.anatomy import separate_bias
from backbones.inject import Backbone, modules_with
from methods.layers.divisors import DivisorLook, away_from_zero, divisible
from methods.layers.low_rank import LowRank, Rows, compute_dtype, low_rank_gradients, merged_weight, of_rows
from methods.layers.low_rank_layers import LoRALinear
from methods.layers.low_rank_targets import Target
from methods.layers.operation import Operation
from methods.lora import LoRA


def decomposed(
    weight: Tensor, A: Tensor, B: Tensor, magnitude: Tensor, rows: Rows, scale: float
) -> tuple[Tensor, Tensor]:
    """Weight ``ratio (W + scale B A)``, and the ratio (sum of sizes,) of magnitude to row norm."""
    result = merged_weight(weight, A, B, rows, scale)
    ratio = magnitude / row_norms(result, rows)
    for (first, last), part in zip(rows, of_rows(ratio, rows), strict=True):
        result[first:last] *= part[:, None]
    return result, ratio


def row_norms(weight: Tensor, rows: Rows) -> Tensor:
    """Norms (sum of sizes,) of rows, over the input channels."""
    norms = torch.cat([weight[first:last].norm(dim=1) for first, last in rows])
    return norms.clamp_min(1e-12)  # so that a row of zeros stays a row of zeros


class MergedDecomposed(Operation):
    """``y = x (ratio (W + scale B A))^T + b`` with constant norms; keeps x and y for the backward pass.

    With g the gradient of y: d magnitude = (sum g y - b sum g) / magnitude.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        magnitude: Tensor,
        rows: Rows,
        scale: float,
    ) -> Tensor:
        x = x.to(compute_dtype(x))
        y = F.linear(x, decomposed(weight, A, B, magnitude, rows, scale)[0].to(x.dtype), bias)
        ctx.save_for_backward(x, weight, bias, A, B, magnitude, y)
        ctx.rows, ctx.scale = rows, scale
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, A, B, magnitude, y = ctx.saved_tensors
        full, ratio = decomposed(weight, A, B, magnitude, ctx.rows, ctx.scale)
        d_x = g @ full.to(g.dtype) if ctx.needs_input_grad[0] else None
        g, x, y = g.flatten(0, -2), x.flatten(0, -2), y.flatten(0, -2)
        d_a, d_b, _ = low_rank_gradients(g, x, A, ratio[:, None] * B, ctx.rows, ctx.scale)
        products, d_bias = (g * y).sum(0, dtype=torch.float32), g.sum(0, dtype=torch.float32)
        if bias is not None:
            products -= bias * d_bias
        d_magnitude = torch.cat([products[first:last] for first, last in ctx.rows]) / away_from_zero(magnitude)
        d_weight = None  # W must be frozen, because the norms of its rows are constants here
        return (
            d_x,
            d_weight,
            d_bias if ctx.needs_input_grad[2] else None,
            d_a,
            ratio[:, None] * d_b,
            d_magnitude,
            None,
            None,
        )


class Decomposed(LowRank):
    """Low-rank update of the directions of rows, with a magnitude for each row.

    Args:
        layer: Linear layer or convolution.
        options: Further arguments of ``LowRank``.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, *options: Any) -> None:
        super().__init__(layer, *options)
        self.magnitude = nn.Parameter(torch.empty(self.B.shape[0]))
        self.reset(layer.weight)
        self.output_changes = False  # whether the network writes into the layer's output
        self.divisible_in_step: bool | None = None  # value of ``divisible`` during a training step, None outside

    def reset(self, weight: Tensor) -> None:
        """Start from the row norms of the frozen weight."""
        with torch.no_grad():
            self.magnitude.copy_(row_norms(self.matrix(weight).to(self.A.dtype), self.rows))

    def merged(self, matrix: Tensor) -> Tensor:
        return super().merged(matrix) * self.ratio(matrix)[:, None]

    def ratio(self, weight: Tensor) -> Tensor:
        """Ratio (out,) of magnitude to the constant row norm; 1 for rows without an update."""
        with torch.no_grad():
            norms = row_norms(merged_weight(weight, *self.factors(), self.rows, self.scale), self.rows)
        ratio = torch.ones_like(weight[:, 0], dtype=norms.dtype)
        for (first, last), part in zip(self.rows, of_rows(self.magnitude / norms, self.rows), strict=True):
            ratio[first:last] = part
        return ratio

    @property
    def divisible(self) -> bool:
        """Whether the backward pass may divide by every magnitude."""
        return divisible(self.magnitude, self.divisible_in_step)


class DoRALinear(LoRALinear):
    """A linear layer with trained directions and magnitudes of its rows."""

    lora: Decomposed

    def forward(self, input: Tensor) -> Tensor:
        lora = self.lora
        if lora.drops or lora.output_changes or not lora.divisible:
            return self.unmerged(input)
        return MergedDecomposed.apply(
            input, self.weight, self.bias, *lora.factors(), lora.magnitude, lora.rows, lora.scale
        )

    def unmerged(self, input: Tensor) -> Tensor:
        """Output ``W (x - x') + b + ratio (W + scale B A) x'`` from single products; x' is x after dropout."""
        dropped = self.lora.drop_input(input)
        y = self.lora.add(self.product(dropped, None), dropped)
        y = y * self.lora.ratio(self.dense()).to(y.dtype)
        if dropped is not input:
            return y + self.product(input - dropped, self.bias)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class DoRA(LoRA):
    """Weight-decomposed low-rank adaptation (Liu et al., ICML 2024, arXiv:2402.09353).

    It has the options of LoRA. Dropout is for linear layers only.
    """

    update_class = Decomposed
    layer_class = DoRALinear

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.look = DivisorLook()

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        for name, module in backbone.named_modules():
            if isinstance(module, DoRALinear) and separate_bias(backbone, name) is not None:
                module.lora.output_changes = True

    def add_update(self, name: str, layer: Any, rank: int, target: Target) -> None:
        if self.lora_dropout and (type(layer) is not nn.Linear or target.order is not None):
            raise ValueError(
                f"lora_dropout={self.lora_dropout}: the magnitudes of {name} act through its weight alone, because it "
                "is no plain linear layer with q, k and v in one piece each; set lora_dropout=0, or name other layers "
                "in lora_targets"
            )
        super().add_update(name, layer, rank, target)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        updates = [linear.lora for linear in modules_with(self.backbone, "lora")]
        looks = self.look([update.magnitude for update in updates], batch_idx == 0)
        for update, look in zip(updates, looks, strict=True):
            update.divisible_in_step = look

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        for linear in modules_with(self.backbone, "lora"):
            linear.lora.divisible_in_step = None
