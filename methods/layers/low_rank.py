"""Low-rank updates ``W + scale B A`` of frozen layers; LoRA, DoRA, QLoRA, FacT and VeRA use them."""

from math import sqrt
from typing import Any, Literal

import torch
from timm.layers import Conv2dSame, pad_same
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.inject import AdapterModule
from methods.layers.operation import Operation

Rows = tuple[tuple[int, int], ...]
"""Updated blocks of output channels, each as (first row, last row + 1)."""


def of_rows(values: Tensor, rows: Rows) -> tuple[Tensor, ...]:
    """Part of a tensor (sum of sizes, ...) for each block of rows."""
    return values.split([last - first for first, last in rows])


def merged_weight(weight: Tensor, A: Tensor, B: Tensor, rows: Rows, scale: float) -> Tensor:
    """Weight ``W + scale B A`` in the precision of A; A (K r, in), B (sum of sizes, r) hold a pair per block."""
    result = A.new_empty(weight.shape).copy_(weight)  # made by A, because vmap gives A a dimension of adapters
    for (first, last), a, b in zip(rows, A.chunk(len(rows)), of_rows(B, rows), strict=True):
        result[first:last].addmm_(b, a, alpha=scale)
    return result


def wide_factor(B: Tensor, rows: Rows, outputs: int) -> Tensor:
    """Matrix (out, K r) for which ``wide A`` is the update of all rows; 0 where an output does not see an A."""
    rank = B.shape[1]
    if rows == ((0, outputs),):
        return B
    wide = B.new_zeros(outputs, len(rows) * rank)
    for index, ((first, last), b) in enumerate(zip(rows, of_rows(B, rows), strict=True)):
        wide[first:last, index * rank : (index + 1) * rank] = b
    return wide


def low_rank_gradients(
    g: Tensor, x: Tensor, A: Tensor, B: Tensor, rows: Rows, scale: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of A, B and h from the gradient g (T, out) of ``scale B (mask * h)``; h = A x^T (K r, T) is recomputed.

    T is the last dimension of h, because on a CPU these products are then 2 to 5 times faster than their transposes.
    """
    h = A.to(x.dtype) @ x.T
    d_b, d_h = hidden_gradients(g, h if mask is None else h * mask, B, rows, scale, mask)
    return d_h @ x, d_b, d_h


def dense_gradients(g: Tensor, x: Tensor, A: Tensor, B: Tensor, rows: Rows, scale: float) -> tuple[Tensor, Tensor]:
    """Gradients of A and B from that of each block of rows (size, in), cheaper if the rank exceeds its smaller side."""
    d_a, d_b = [], []
    for (first, last), a, b in zip(rows, A.to(g.dtype).chunk(len(rows)), of_rows(B.to(g.dtype), rows), strict=True):
        d_w = (g[:, first:last].T @ x) * scale
        d_a.append(b.T @ d_w)
        d_b.append(d_w @ a.T)
    return torch.cat(d_a), torch.cat(d_b)


def hidden_gradients(
    g: Tensor, h: Tensor, B: Tensor, rows: Rows, scale: float, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of B and h from the gradient g (T, out) of ``scale B h``, for a kept h (K r, T), masked already."""
    blocks = [g[:, first:last] for first, last in rows]
    d_h = torch.cat([b.T @ block.T for b, block in zip(of_rows(B.to(g.dtype), rows), blocks, strict=True)]) * scale
    d_b = torch.cat([(part @ block).T for part, block in zip(h.chunk(len(rows)), blocks, strict=True)]) * scale
    return d_b, d_h if mask is None else d_h * mask


def add_update(y: Tensor, h: Tensor, B: Tensor, rows: Rows, scale: float) -> Tensor:
    """Sum ``y + scale B h`` of y (T, out) and an update from h (K r, T)."""
    # not in place, because under torch.compile gradients of the input of an in-place custom function are wrong
    return torch.addmm(y, h.T, wide_factor(B.to(h.dtype), rows, y.shape[1]).T, alpha=scale)


class MergedLowRank(Operation):
    """``y = x (W + scale B A)^T + b`` for x (T, in) in one product; keeps only x for the backward pass.

    T is one dimension, because torch forbids to modify an output in place that is a view made inside the function.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, rows: Rows, scale: float
    ) -> Tensor:
        x = x.to(compute_dtype(x))  # otherwise autocast casts inside the product, and x is kept in fp32
        ctx.save_for_backward(x, weight, A, B)
        ctx.rows, ctx.scale = rows, scale
        return F.linear(x, merged_weight(weight, A, B, rows, scale).to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, A, B = ctx.saved_tensors
        d_x = g @ merged_weight(weight, A, B, ctx.rows, ctx.scale).to(g.dtype) if ctx.needs_input_grad[0] else None
        if B.shape[1] > min(A.shape[1], *(last - first for first, last in ctx.rows)):
            d_a, d_b = dense_gradients(g, x, A, B, ctx.rows, ctx.scale)
        else:
            d_a, d_b, _ = low_rank_gradients(g, x, A, B, ctx.rows, ctx.scale)
        d_weight = g.T @ x if ctx.needs_input_grad[1] else None
        d_bias = g.sum(0) if ctx.needs_input_grad[2] else None
        return d_x, d_weight, d_bias, d_a, d_b, None, None


class AddedLowRank(Operation):
    """``y + scale B (mask * A x)`` for y (T, out), x (T, in); keeps x and the mask (K r, T) for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, A: Tensor, B: Tensor, mask: Tensor | None, rows: Rows, scale: float
    ) -> Tensor:
        x = x.to(y.dtype)
        h = A.to(x.dtype) @ x.T
        ctx.save_for_backward(x, A, B, mask)
        ctx.rows, ctx.scale = rows, scale
        return add_update(y, h if mask is None else h * mask, B, rows, scale)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, A, B, mask = ctx.saved_tensors
        d_a, d_b, d_h = low_rank_gradients(g, x, A, B, ctx.rows, ctx.scale, mask)
        d_x = d_h.T @ A.to(d_h.dtype) if ctx.needs_input_grad[1] else None
        return g, d_x, d_a, d_b, None, None, None


def compute_dtype(x: Tensor) -> torch.dtype:
    """Dtype of a matrix product with x, under autocast too."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class LowRank(AdapterModule):
    """Low-rank update ``scale B A`` of a weight, or of blocks of its rows, each with its own A and B.

    The weight of a convolution counts as a matrix (out, in / groups * height * width).

    Args:
        layer: Linear layer or convolution.
        rank: Rank r of each update.
        scale: Factor of each update.
        rows: Blocks of rows; the whole weight by default.
        dropout: Dropout probability in training.
        dropout_at: Place of dropout. ``hidden``: the r channels between A and B. ``input``: the input of A.
        order: Row of the weight at each place, for ``rows`` that count places; by default place and row are equal.
    """

    order: Tensor | None
    A0: Tensor | None
    B0: Tensor | None

    def __init__(
        self,
        layer: nn.Linear | nn.Conv2d,
        rank: int,
        scale: float = 1.0,
        rows: Rows | None = None,
        dropout: float = 0.0,
        dropout_at: Literal["hidden", "input"] = "hidden",
        order: Tensor | None = None,
    ) -> None:
        super().__init__()
        outputs, inputs = layer.weight.flatten(1).shape
        self.rows = rows or ((0, outputs),)
        self.scale, self.dropout, self.dropout_at = scale, dropout, dropout_at
        order = None if order is None else order.to(layer.weight.device)
        self.register_buffer("order", order, persistent=False)
        bound = 1 / sqrt(inputs)  # Kaiming uniform with a = sqrt 5, the init of torch's linear layers
        self.A = nn.Parameter(torch.empty(len(self.rows) * rank, inputs).uniform_(-bound, bound))
        self.B = nn.Parameter(torch.zeros(sum(last - first for first, last in self.rows), rank))
        self.register_buffer("A0", None)
        self.register_buffer("B0", None)

    def start_from(self, A: Tensor, B: Tensor) -> None:
        """Start from factors whose product is taken off the weight: ``W + scale (B A - B0 A0)``, which is W at first.

        The start is kept as buffers, because the frozen weight keeps its value.
        """
        self.A.data.copy_(A)
        self.B.data.copy_(B)
        self.A0, self.B0 = self.A.detach().clone(), self.B.detach().clone()

    def factors(self) -> tuple[Tensor, Tensor]:
        """Matrices A (K r, in) and B (sum of sizes, r) of K blocks of rows; of rank 2 r after ``start_from``."""
        if self.A0 is None or self.B0 is None:
            return self.A, self.B
        A, A0 = (factor.unflatten(0, (len(self.rows), -1)) for factor in (self.A, self.A0))
        return torch.cat([A, A0], 1).flatten(0, 1), torch.cat([self.B, -self.B0], 1)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        starts = {name: self._buffers.get(name) for name in ("A0", "B0")}
        super()._apply(fn, recurse)
        for name, start in starts.items():
            cast = self._buffers.get(name)
            if start is not None and cast is not None and cast.dtype in (torch.bfloat16, torch.float16):
                # in fp32 as the trained factors, otherwise rounding would move the first weight away from W
                self._buffers[name] = start.to(cast.device)
        return self

    def wide_factors(self, outputs: int) -> tuple[Tensor, Tensor]:
        """Matrices A (K r, in) and B (out, K r) of one update of the whole weight."""
        A, B = self.factors()
        wide = wide_factor(B, self.rows, outputs)
        return A, wide if self.order is None else wide[self.order.argsort()]

    def matrix(self, weight: Tensor) -> Tensor:
        """Weight as a matrix (out, in), with the updated blocks in one piece each."""
        matrix = weight.flatten(1)
        return matrix if self.order is None else matrix[self.order]

    def merged(self, matrix: Tensor) -> Tensor:
        """Matrix with the update added, in the precision of A and B."""
        return merged_weight(matrix, *self.factors(), self.rows, self.scale)

    def merge_into(self, weight: Tensor) -> Tensor:
        """Weight with the update added, in fp32."""
        merged = self.merged(self.matrix(weight))
        return (merged if self.order is None else merged[self.order.argsort()]).view_as(weight)

    @property
    def drops(self) -> bool:
        return self.training and self.dropout > 0

    def drop_input(self, x: Tensor) -> Tensor:
        """Input of A: the layer's input x, with dropout if its place is ``input``."""
        return F.dropout(x, self.dropout) if self.drops and self.dropout_at == "input" else x

    def mask(self, y: Tensor, channels: int) -> Tensor | None:
        """Dropout mask (K r, T) of the channels between A and B, in the dtype of y (..., out); None without dropout."""
        if not (self.drops and self.dropout_at == "hidden"):
            return None
        return F.dropout(y.new_ones(channels, y.numel() // y.shape[-1]), self.dropout)

    def add(self, y: Tensor, x: Tensor) -> Tensor:
        """Output y (..., out) of the frozen linear layer with the update for x (..., in) added."""
        A, B = self.factors()
        mask = self.mask(y, A.shape[0])
        sums = AddedLowRank.apply(y.flatten(0, -2), x.flatten(0, -2), A, B, mask, self.rows, self.scale)
        return sums.view_as(y)

    # for layers that read an updated weight: see ``low_rank_layers.add_low_rank``

    def forward(self, weight: Tensor) -> Tensor:
        """Weight that the layer reads: without the update while ``hook`` adds it."""
        return weight if self.drops else self.merge_into(weight).to(weight.dtype)

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Add the update to the output of the frozen layer, because dropout acts between A and B or before A."""
        if not self.drops:
            return output
        A, B = (factor.to(output.dtype) for factor in self.wide_factors(module.get_parameter("weight").shape[0]))
        x = self.drop_input(args[0])
        h = product(module, x, A)
        h = F.dropout(h, self.dropout) if self.dropout_at == "hidden" else h
        update = F.linear(h, B) if isinstance(module, nn.Linear) else F.conv2d(h, B[..., None, None])
        return output + self.scale * update


def product(layer: Any, x: Tensor, A: Tensor) -> Tensor:
    """Hidden channels A x for A (K r, in); for a convolution with its stride, padding and dilation."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, A)
    kernel = A.unflatten(1, (layer.in_channels, *layer.kernel_size))
    if isinstance(layer, Conv2dSame):
        x = pad_same(x, list(layer.kernel_size), list(layer.stride), list(layer.dilation))
    return layer._conv_forward(x, kernel, None)
