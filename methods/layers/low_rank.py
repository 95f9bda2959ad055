"""Low-rank updates ``W + scale B A`` of frozen linear layers; LoRA, DoRA, QLoRA, FacT and VeRA use them."""

import difflib
from math import sqrt
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.anatomy import ends, linear_layers, reads_bare_weight
from backbones.inject import Backbone, modules_with, swap_class

Rows = tuple[tuple[int, int], ...]
"""Updated blocks of output channels, each as (first row, last row + 1)."""


def merged_weight(weight: Tensor, A: Tensor, B: Tensor, rows: Rows, scale: float) -> Tensor:
    """Weight ``W + scale B A`` in the precision of A. A (K r, in) and B (K size, r) hold a pair per block of rows."""
    result = weight.to(A.dtype, copy=True)
    for (first, last), a, b in zip(rows, A.chunk(len(rows)), B.chunk(len(rows)), strict=True):
        result[first:last].addmm_(b, a, alpha=scale)
    return result


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
    for (first, last), a, b in zip(rows, A.to(g.dtype).chunk(len(rows)), B.to(g.dtype).chunk(len(rows)), strict=True):
        d_w = (g[:, first:last].T @ x) * scale
        d_a.append(b.T @ d_w)
        d_b.append(d_w @ a.T)
    return torch.cat(d_a), torch.cat(d_b)


def hidden_gradients(
    g: Tensor, h: Tensor, B: Tensor, rows: Rows, scale: float, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of B and h from the gradient g (T, out) of ``scale B h``, for a kept h (K r, T), masked already."""
    blocks = [g[:, first:last] for first, last in rows]
    d_h = torch.cat([b.T @ block.T for b, block in zip(B.to(g.dtype).chunk(len(rows)), blocks, strict=True)]) * scale
    d_b = torch.cat([(part @ block).T for part, block in zip(h.chunk(len(rows)), blocks, strict=True)]) * scale
    return d_b, d_h if mask is None else d_h * mask


def add_update(y: Tensor, h: Tensor, B: Tensor, rows: Rows, scale: float) -> None:
    """Add ``scale B h`` to y in place, for y (..., out) and h (K r, T)."""
    flat = y.view(-1, y.shape[-1])
    for (first, last), part, b in zip(rows, h.chunk(len(rows)), B.to(h.dtype).chunk(len(rows)), strict=True):
        flat[:, first:last].addmm_(part.T, b.T, alpha=scale)


class MergedLowRank(torch.autograd.Function):
    """``y = x (W + scale B A)^T + b`` in one product; keeps only x for the backward pass."""

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
        g, x = g.flatten(0, -2), x.flatten(0, -2)
        rank, size = B.shape[1], B.shape[0] // len(ctx.rows)
        if rank > min(size, A.shape[1]):
            d_a, d_b = dense_gradients(g, x, A, B, ctx.rows, ctx.scale)
        else:
            d_a, d_b, _ = low_rank_gradients(g, x, A, B, ctx.rows, ctx.scale)
        d_weight = g.T @ x if ctx.needs_input_grad[1] else None
        d_bias = g.sum(0) if ctx.needs_input_grad[2] else None
        return d_x, d_weight, d_bias, d_a, d_b, None, None


class AddedLowRank(torch.autograd.Function):
    """``y += scale B (mask * A x)`` in place; keeps x and the mask (K r, T) for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, A: Tensor, B: Tensor, mask: Tensor | None, rows: Rows, scale: float
    ) -> Tensor:
        x = x.to(y.dtype)
        h = A.to(x.dtype) @ x.flatten(0, -2).T
        add_update(y, h if mask is None else h * mask, B, rows, scale)
        ctx.save_for_backward(x, A, B, mask)
        ctx.rows, ctx.scale = rows, scale
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, A, B, mask = ctx.saved_tensors
        d_a, d_b, d_h = low_rank_gradients(g.flatten(0, -2), x.flatten(0, -2), A, B, ctx.rows, ctx.scale, mask)
        d_x = (d_h.T @ A.to(d_h.dtype)).view_as(x) if ctx.needs_input_grad[1] else None
        return g, d_x, d_a, d_b, None, None, None


def compute_dtype(x: Tensor) -> torch.dtype:
    """Dtype of a matrix product with x, under autocast too."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class LowRank(nn.Module):
    """Low-rank update ``scale B A`` of a weight (out, in), or of blocks of its rows, each with its own A and B.

    Args:
        linear: The layer.
        rank: Rank r of each update.
        scale: Factor of each update.
        rows: Blocks of rows, all of one size; the whole weight by default.
        dropout: Dropout probability in training.
        dropout_at: Place of dropout. ``hidden``: the r channels between A and B. ``input``: the input of A.
    """

    def __init__(
        self,
        linear: nn.Linear,
        rank: int,
        scale: float = 1.0,
        rows: Rows | None = None,
        dropout: float = 0.0,
        dropout_at: Literal["hidden", "input"] = "hidden",
    ) -> None:
        super().__init__()
        self.rows = rows or ((0, linear.out_features),)
        self.scale, self.dropout, self.dropout_at = scale, dropout, dropout_at
        size = self.rows[0][1] - self.rows[0][0]
        bound = 1 / sqrt(linear.in_features)  # Kaiming uniform with a = sqrt 5, the init of torch's linear layers
        self.A = nn.Parameter(torch.empty(len(self.rows) * rank, linear.in_features).uniform_(-bound, bound))
        self.B = nn.Parameter(torch.zeros(len(self.rows) * size, rank))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Matrices A (K r, in) and B (K size, r) of K blocks of rows."""
        return self.A, self.B

    def merge_into(self, weight: Tensor) -> Tensor:
        """Weight with the update added, in fp32."""
        return merged_weight(weight, *self.factors(), self.rows, self.scale)

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

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """Add the update for x (..., in) to the output y (..., out) of the frozen layer, in place."""
        A, B = self.factors()
        return AddedLowRank.apply(y, x, A, B, self.mask(y, A.shape[0]), self.rows, self.scale)


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
        if self.lora.drops:
            return self.lora(self.product(input, self.bias), self.lora.drop_input(input))
        return MergedLowRank.apply(input, self.weight, self.bias, *self.lora.factors(), self.lora.rows, self.lora.scale)


def merge_low_rank(backbone: Backbone) -> None:
    """Add every low-rank update to its weight and make the layers plain again."""
    for linear in modules_with(backbone, "lora"):
        linear.weight.copy_(linear.lora.merge_into(linear.weight))
        del linear.lora
        swap_class(linear, nn.Linear)


def find_targets(
    backbone: Backbone, targets: list[str], heads: tuple[str, ...] = (), option: str = "lora_targets"
) -> dict[str, Rows]:
    """Find the linear layers of targets, each with the blocks of rows to update.

    Args:
        backbone: The model.
        targets: Ends of layer names; ``q``, ``k`` and ``v`` are also the thirds of a layer named ``qkv``.
        heads: Names of the classifier's layers, which train in full.
        option: Name of the option that gives the targets, for messages.

    Raises:
        ValueError: If a target matches no layer, rows of another target, or a layer that the backbone never calls.
    """
    layers = linear_layers(backbone, heads)
    found: dict[str, Rows] = {}
    for target in dict.fromkeys(targets):
        hits = {name: (0, layer.out_features) for name, layer in layers.items() if ends(name, target)}
        for name in [name for name in layers if ends(name, "qkv") and target in ("q", "k", "v")]:
            size = layers[name].out_features // 3
            first = "qkv".index(target) * size
            hits[name] = (first, first + size)
        if not layers:
            raise ValueError(f"{option}: {type(backbone).__name__} has no linear layers beside its classifier")
        if not hits:
            known = sorted({n.rpartition(".")[2] for n in layers} | {".".join(n.split(".")[-2:]) for n in layers})
            near = difflib.get_close_matches(target, known, n=5, cutoff=0.4) or known[:5]
            raise ValueError(f"{option}: no linear layer's name ends with {target!r}; near: {', '.join(near)}")
        for name, (first, last) in hits.items():
            if reads_bare_weight(backbone, name):
                raise ValueError(
                    f"{option}: the attention of this backbone uses the weight of {name} without calling the "
                    "layer, so that an update has no effect; choose other layers, such as proj, fc1, fc2"
                )
            others = found.get(name, ())
            if any(first < other_last and other_first < last for other_first, other_last in others):
                raise ValueError(f"{option}: {target} covers rows of {name} twice; leave one target out")
            found[name] = tuple(sorted((*others, (first, last))))
    return found
