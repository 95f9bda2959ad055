"""Low-rank Attention Side-Tuning for Parameter-Efficient Fine-Tuning (arXiv:2402.04009).

``u_0 = z_0; u_i = F_i(u_{i-1} + z_i)`` for the token maps z_i of a frozen ViT and low-rank attention F_i.
"""

import warnings
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from backbones.anatomy import token_sequence
from backbones.inject import Backbone, Tap, attach, check_free
from lightning_modules.task import Task
from methods.core.frozen import FrozenBackbone
from methods.layers.low_rank import compute_dtype
from methods.layers.operation import Operation


class Norm(Operation):
    """LayerNorm of tokens x (..., D) in fp32; keeps x in a smaller dtype for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        y, mean, deviation = torch.native_layer_norm(x, weight.shape, weight, bias, eps)
        ctx.save_for_backward(x.to(dtype), mean, deviation, weight, bias)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, deviation, weight, bias = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        gradients = torch.ops.aten.native_layer_norm_backward(
            g.contiguous(), x.to(g.dtype), weight.shape, mean, deviation, weight, bias, wanted
        )
        return *gradients, None, None


class LowRankAttention(nn.Module):
    """Attention ``softmax(Q K^T / sqrt(r)) V A_up`` of normed tokens, of rank r; the caller adds the residual.

    Args:
        dim: Width D of a token.
        rank: Width r of queries, keys and values.
        heads: Attention heads, which share the rank.
        bias: Whether the four projections have biases.
        dropout: Probability of dropping a value before the up projection.
    """

    def __init__(self, dim: int, rank: int, heads: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.q, self.k, self.v = (nn.Linear(dim, rank, bias=bias) for _ in range(3))  # kaiming_uniform(a=sqrt(5))
        self.up = nn.Linear(rank, dim, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Update (B, n, D) of tokens (B, n, D)."""
        dtype = compute_dtype(x)
        # cast once, otherwise autocast casts for q, k and v, and autograd keeps three copies
        x = Norm.apply(x, self.norm.weight, self.norm.bias, self.norm.eps, dtype).to(dtype)
        q, k, v = (f(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.up(self.dropout(x))


class LAST(FrozenBackbone):
    """Low-rank attention side-tuning (Tang et al., 2024, arXiv:2402.04009).

    The paper's code is not public. Details that its text leaves open are our choice.

    Args:
        last_gap: Number g of ViT blocks between two token maps of the side network; must divide the depth.
        last_depth: Number T of attention modules for each of these maps.
        last_rank: Width r of queries, keys and values.
        last_heads: Attention heads, which share the rank.
        last_bias: Whether the projections have biases.
        last_dropout: Probability of dropping a value before the up projection.
        last_up_init: Initial up projections. ``zeros``: zero, so that training starts as a linear probe. ``xavier``:
            Xavier uniform.
    """

    mergeable = False
    unmergeable = "its side network stays beside the backbone"

    def __init__(
        self,
        last_gap: int = 1,
        last_depth: int = 1,
        last_rank: int = 16,
        last_heads: int = 1,
        last_bias: bool = False,
        last_dropout: float = 0.0,
        last_up_init: Literal["zeros", "xavier"] = "zeros",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value in {"last_gap": last_gap, "last_depth": last_depth, "last_rank": last_rank}.items():
            if value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        if last_heads < 1 or last_rank % last_heads:
            raise ValueError(f"last_heads={last_heads}: expected a number that divides last_rank={last_rank}")
        if not 0 <= last_dropout < 1:
            raise ValueError(f"last_dropout={last_dropout}: expected a probability below 1")
        self.last_gap, self.last_depth, self.last_up_init = last_gap, last_depth, last_up_init
        self.recomputes = False
        self.attention: dict[str, Any] = {
            "rank": last_rank,
            "heads": last_heads,
            "bias": last_bias,
            "dropout": last_dropout,
        }

    @classmethod
    def refusal(cls, task: type[Task]) -> str:
        reason = "LAST gives one sequence of tokens, and here a head reads maps of blocks: use hst or lora"
        return reason if task.dense else super().refusal(task)

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        sequence = token_sequence(backbone, "LAST reads the tokens of a plain ViT")
        depth, gap = len(sequence.blocks), self.last_gap
        if depth % gap:
            divisors = ", ".join(str(d) for d in range(1, depth + 1) if depth % d == 0)
            raise ValueError(f"last_gap={gap} does not divide the {depth} blocks here; use one of {divisors}")
        first, read = sequence.blocks[0], sequence.blocks[gap - 1 :: gap]
        check_free(first, "last_input")
        first.last_input = Tap()
        first.register_forward_pre_hook(first.last_input.keep_input)
        for block in read:
            attach(block, "last", Tap())
        self.side = nn.ModuleList(
            nn.ModuleList(LowRankAttention(sequence.width, **self.attention) for _ in range(self.last_depth))
            for _ in read
        )
        for name, parameter in self.side.named_parameters():
            if name.endswith("up.weight") and self.last_up_init == "xavier":
                nn.init.xavier_uniform_(parameter)
            elif ".up." in name:
                nn.init.zeros_(parameter)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the side network; the backbone stays in eval mode."""
        super().train(mode)
        if self.adapted:
            self.backbone.eval()
        return self

    def on_fit_start(self) -> None:
        warnings.filterwarnings("ignore", ".*in eval mode at the start of training")  # on purpose in this method

    def token_maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Token maps ``z_0`` ... ``z_m``, (B, n, D) each, without an autograd graph."""
        with torch.no_grad():
            self.backbone.forward_features(x)
        blocks = self.backbone.blocks
        return blocks[0].last_input.take(), *(block.last.take() for block in blocks[self.last_gap - 1 :: self.last_gap])

    def side_tokens(self, maps: tuple[Tensor, ...]) -> Tensor:
        """Output ``y = u_m - (z_0 + ... + z_{m-1})``, (B, n, D), with ``u_0 = z_0`` and ``u_i = F_i(u_{i-1} + z_i)``.

        Computed by way of ``d_i = u_i - (z_0 + ... + z_i)`` in fp32, because ``u`` grows with every map and ``d``, the
        learned part, does not.
        """
        total = maps[0].to(torch.promote_types(maps[0].dtype, torch.float32))
        d = torch.zeros_like(total)
        for z, modules in zip(maps[1:], self.side, strict=True):
            total = total + z
            for module in modules:  # type: ignore[attr-defined]
                x = total + d
                d = d + (checkpoint(module, x, use_reentrant=False) if self.recomputes else module(x))
        return (maps[-1] + d).to(maps[-1].dtype)

    def recompute(self, enabled: bool) -> None:
        """Compute activations of the side network again, because gradients do not enter the backbone."""
        self.recomputes = enabled

    def frozen_layers(self) -> str:
        return f"input and every {self.last_gap} blocks"

    def frozen_features(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.token_maps(x)

    def forward_frozen(self, features: tuple[Tensor, ...]) -> Tensor:
        return self.predict_from(self.backbone.norm(self.side_tokens(features)))

    def features(self, x: Tensor) -> Tensor:
        if not self.adapted:
            return super().features(x)
        return self.backbone.norm(self.side_tokens(self.token_maps(x)))
