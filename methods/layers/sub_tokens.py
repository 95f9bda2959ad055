"""Sub-token compression of saved activations (VeLoRA, Miles et al., NeurIPS 2024, arXiv:2405.17991).

Each token of a tensor x with C channels is cut into G sub-tokens of M channels. z holds the product of each sub-token
with a unit vector v. In the gradient, ``x^ = z v`` takes the place of x. Gradients that do not need x stay exact.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.layers.low_rank import Rows, add_update, compute_dtype, hidden_gradients, merged_weight
from methods.layers.operation import Operation

Init = Literal["batch_average_once", "batch_average", "running_average", "random", "svd"]
SVD_ROWS = 2048  # largest number of sub-tokens for a singular vector


def sub_tokens(x: Tensor, size: int) -> Tensor:
    """Sub-tokens (T G, M) of x (..., C) with T tokens; zeros fill the last sub-token of a token."""
    missing = -x.shape[-1] % size
    return (F.pad(x, (0, missing)) if missing else x).reshape(-1, size)


def project(x: Tensor, v: Tensor) -> Tensor:
    """Projection z (T, G) with ``z = <v, sub-token>`` of x (..., C), kept in place of x."""
    return (sub_tokens(x, len(v)) @ v.to(x.dtype)).view(-1, -(-x.shape[-1] // len(v)))


def spread(z: Tensor, v: Tensor, width: int) -> Tensor:
    """Reconstruction (..., C) in fp32 from z (..., G): the vectors ``z_j v`` side by side."""
    return (z.float()[..., None] * v).flatten(-2)[..., :width]


def unit(vector: Tensor) -> Tensor:
    """Vector (M,) scaled to length 1; a vector of zeros becomes one with equal entries."""
    norm = vector.norm()
    return torch.where(norm > 0, vector / norm.clamp_min(1e-12), len(vector) ** -0.5)


class CompressedLinear(Operation):
    """``y = x W^T + b``; saves only z: d W = s spread(g^T z, v) is approximate, other gradients are exact."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, v: Tensor, s: float) -> Tensor:
        x = x.to(compute_dtype(x))
        ctx.save_for_backward(project(x, v), weight, v)
        ctx.s = s
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        z, weight, v = ctx.saved_tensors
        d_x = g @ weight.to(g.dtype) if ctx.needs_input_grad[0] else None
        g = g.flatten(0, -2)
        d_weight = ctx.s * spread(g.T @ z, v, weight.shape[1])
        return d_x, d_weight, g.sum(0) if ctx.needs_input_grad[2] else None, None, None


class CompressedMergedLowRank(Operation):
    """``y = x (W + scale B A)^T + b`` for x (T, in); saves z and h = A x. d A is approximate, and d W if W trains."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        v: Tensor,
        s: float,
        rows: Rows,
        scale: float,
    ) -> Tensor:
        x = x.to(compute_dtype(x))
        ctx.save_for_backward(project(x, v), A.to(x.dtype) @ x.T, weight, A, B, v)
        ctx.s, ctx.rows, ctx.scale = s, rows, scale
        return F.linear(x, merged_weight(weight, A, B, rows, scale).to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        z, h, weight, A, B, v = ctx.saved_tensors
        d_x = g @ merged_weight(weight, A, B, ctx.rows, ctx.scale).to(g.dtype) if ctx.needs_input_grad[0] else None
        d_b, d_h = hidden_gradients(g, h, B, ctx.rows, ctx.scale, None)
        d_weight = ctx.s * spread(g.T @ z, v, A.shape[1]) if ctx.needs_input_grad[1] else None
        d_bias = g.sum(0) if ctx.needs_input_grad[2] else None
        return d_x, d_weight, d_bias, ctx.s * spread(d_h @ z, v, A.shape[1]), d_b, None, None, None, None


class CompressedAddedLowRank(Operation):
    """``y + scale B (mask * A x)`` for y (T, out), x (T, in); saves z, h and the mask. d A is approximate."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        mask: Tensor | None,
        v: Tensor,
        s: float,
        rows: Rows,
        scale: float,
    ) -> Tensor:
        x = x.to(y.dtype)
        h = A.to(x.dtype) @ x.T
        h = h if mask is None else h * mask
        ctx.save_for_backward(project(x, v), h, A, B, mask, v)
        ctx.s, ctx.rows, ctx.scale = s, rows, scale
        return add_update(y, h, B, rows, scale)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        z, h, A, B, mask, v = ctx.saved_tensors
        d_b, d_h = hidden_gradients(g, h, B, ctx.rows, ctx.scale, mask)
        d_x = d_h.T @ A.to(d_h.dtype) if ctx.needs_input_grad[1] else None
        return g, d_x, ctx.s * spread(d_h @ z, v, A.shape[1]), d_b, None, None, None, None, None


class CompressedScaleShift(Operation):
    """``y = scale x + shift``, written into x (..., C); saves only z: d scale = s sum_t g x^ is approximate."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, v: Tensor, s: float) -> Tensor:
        ctx.save_for_backward(project(x, v), scale, v)
        ctx.s = s
        if torch.compiler.is_compiling():  # gradients of an in-place custom function would be wrong
            return x * scale.to(x.dtype) + shift.to(x.dtype)
        ctx.mark_dirty(x)
        return x.mul_(scale.to(x.dtype)).add_(shift.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        z, scale, v = ctx.saved_tensors
        flat = g.flatten(0, -2)
        products = (sub_tokens(flat, len(v)).view(*z.shape, -1) * z[..., None]).sum(0, dtype=torch.float32)
        d_scale = ctx.s * (products * v).flatten()[: len(scale)]
        return g * scale.to(g.dtype), d_scale, flat.sum(0, dtype=torch.float32), None, None


class Direction(nn.Module):
    """Unit vector v (M,) of one layer; zeros until it is computed from the first batch.

    Args:
        size: Channels M of a sub-token.
        s: Factor of the approximate gradient.
        init: Source of v; see ``velora_init`` of ``VeLoRA``.
        decay: Weight of the old v in a running average.
    """

    v: Tensor

    def __init__(self, size: int, s: float, init: Init, decay: float) -> None:
        super().__init__()
        self.register_buffer("v", unit(torch.rand(size)) if init == "random" else torch.zeros(size))
        self.s, self.init, self.decay = s, init, decay
        self.observes_next = init != "random"  # whether v is computed from the next input
        self.sums: Tensor | None = None  # statistics of the observed input, which are summed over ranks

    def forward(self, x: Tensor) -> Tensor:
        """Vector v for the projection of x (..., C)."""
        if self.observes_next:
            self.observe(x.detach())
        return self.v

    def observe(self, x: Tensor) -> None:
        """Compute v from x (..., C), by the mean of its sub-tokens or, for ``svd``, by their Gram matrix (M, M)."""
        with torch.autocast(x.device.type, enabled=False), torch.no_grad():
            tokens = sub_tokens(x, len(self.v))
            if self.init == "svd":
                tokens = tokens[:: -(-len(tokens) // SVD_ROWS)].float()
                self.sums = tokens.T @ tokens
            else:
                self.sums = tokens.mean(0, dtype=torch.float32)
            self.set_from(self.sums)
        self.observes_next = False  # so that a recomputed forward pass does not count twice

    def set_from(self, sums: Tensor) -> None:
        """Set v from statistics of sub-tokens: their mean (M,), or for ``svd`` their Gram matrix (M, M)."""
        if self.init == "svd":
            first = torch.linalg.eigh(sums)[1][:, -1]  # the first right singular vector of the sub-tokens
            self.v.copy_(unit(first if first.sum() >= 0 else -first))
            return
        if self.init == "running_average":  # chosen on the device, because a branch here would make a GPU wait
            sums = torch.where(self.v.any(), self.decay * self.v + (1 - self.decay) * sums, sums)
        self.v.copy_(unit(sums))

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.observes_next = not bool(self.v.any())

    def _apply(self, fn: Any, recurse: bool = True) -> "Direction":
        values = self.v
        super()._apply(fn, recurse)
        self.v = values.to(self.v.device)  # in its own dtype, because a v cast to bf16 does not have length 1
        return self


def without_effect(directions: dict[str, Direction], forward: Callable[[], Any]) -> list[str]:
    """Names of directions whose input autograd keeps in full during a forward pass, or that the pass never calls.

    Args:
        directions: Directions by name; none of them computes its v in the pass.
        forward: The forward pass; its result holds the graph.
    """
    kept: set[int] = set()
    inputs: dict[nn.Module, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.add(tensor.untyped_storage().data_ptr())
        return tensor.detach()

    flags = {direction: direction.observes_next for direction in directions.values()}
    hooks = [d.register_forward_pre_hook(lambda d, args: inputs.update({d: args[0]})) for d in flags]
    for direction in flags:
        direction.observes_next = False
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = forward()
    del output
    for (direction, flag), hook in zip(flags.items(), hooks, strict=True):
        direction.observes_next = flag
        hook.remove()
    return [n for n, d in directions.items() if d not in inputs or inputs[d].untyped_storage().data_ptr() in kept]
