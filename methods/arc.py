"""Efficient Adaptation of Large Vision Transformer via Adapter Re-Composing (arXiv:2310.06234).

``x' = x + P diag(c) P^T x + b`` at the input of attention and MLP: a projection P that all blocks share, and c and b of
each block.
"""

from math import sqrt
from typing import Any, Literal

import torch
from torch import nn

from backbones.anatomy import call_qkv
from backbones.blocks import ATTENTION_INPUTS, MLP_INPUTS, attention_blocks, layers_named
from backbones.inject import AdapterModule, Backbone, attach_before, check_free, detach, modules_with
from methods.core.base import PEFTMethod


class SharedProjection(nn.Module):
    """Projection P (D, r); its transpose projects back."""

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.P = nn.Parameter(nn.init.xavier_uniform_(torch.empty(dim, rank)))


class RecomposedAdapter(AdapterModule):
    """Rewrites the input x (..., D) of a layer as ``x + P diag(c) P^T x + b``.

    Args:
        projection: P, which other layers share.
        bound: The initial c are uniform between -bound and bound; at 0 the adapter starts as the identity.
        dropout: Probability of dropping one of the r channels.
        bias: Whether there is a b.
    """

    def __init__(self, projection: SharedProjection, bound: float, dropout: float, bias: bool) -> None:
        super().__init__()
        self.shared = (projection,)  # in a tuple, otherwise each layer would save P as its child
        dim, rank = projection.P.shape
        self.c = nn.Parameter(torch.empty(rank).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.zeros(dim)) if bias else None
        self.dropout = nn.Dropout(dropout)

    def pre_hook(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, P = args[0], self.shared[0].P
        update = self.dropout(x @ (P * self.c)) @ P.T
        update = update if self.b is None else update + self.b
        return x + update.to(x.dtype), *args[1:]

    def merge_into(self, linear: nn.Linear) -> None:
        """Merge: ``W = W0 + W0 P diag(c) P^T`` and ``bias = bias0 + W0 b``."""
        P = self.shared[0].P
        if self.b is not None:
            linear.bias.add_(linear.weight @ self.b)
        linear.weight.add_(linear.weight @ (P * self.c) @ P.T)


class ARC(PEFTMethod):
    """Adapter re-composing (Dong et al., NeurIPS 2023, arXiv:2310.06234).

    All blocks of one width share a projection for attention and one for the MLP. An adapter has no b if its layer has
    no bias, because no merged layer could hold it.

    Args:
        arc_rank: Width r of the projections.
        arc_branches: Branches with an adapter. ``both``: attention and MLP. ``attn``: attention only.
        arc_dropout: Probability of dropping one of the r channels.
    """

    def __init__(
        self,
        arc_rank: int = 50,
        arc_branches: Literal["both", "attn"] = "both",
        arc_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if arc_rank < 1:
            raise ValueError(f"arc_rank={arc_rank}: expected a positive rank")
        if not 0 <= arc_dropout < 1:
            raise ValueError(f"arc_dropout={arc_dropout}: expected a probability of at least 0 and below 1")
        self.arc_rank, self.arc_branches, self.arc_dropout = arc_rank, arc_branches, arc_dropout

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        # as in the published code, c starts at 0 for attention and Xavier uniform for the MLP
        bounds = {"attn": 0.0, "mlp": sqrt(6 / (1 + self.arc_rank))}
        layers = self.layers(backbone)
        call_qkv(backbone)
        check_free(backbone, "arc")
        backbone.arc = nn.ModuleDict()
        for branch, layer in layers:
            key = f"{branch}_{layer.in_features}"
            if key not in backbone.arc:
                backbone.arc[key] = SharedProjection(layer.in_features, self.arc_rank)
            bias = layer.bias is not None
            attach_before(layer, "arc", RecomposedAdapter(backbone.arc[key], bounds[branch], self.arc_dropout, bias))

    def layers(self, backbone: Backbone) -> list[tuple[str, nn.Linear]]:
        """Layers with an adapter before them, each with its branch.

        Raises:
            ValueError: If there are none.
        """
        found: list[tuple[str, Any]] = []
        for block in attention_blocks(backbone):
            found += [("attn", layer) for layer in layers_named(block.attn, ATTENTION_INPUTS)]
            if self.arc_branches == "both":
                found += [("mlp", layer) for layer in layers_named(block.mlp, MLP_INPUTS)]
        found = [(branch, layer) for branch, layer in found if isinstance(layer, nn.Linear)]
        if not found:
            raise ValueError(
                "ARC changes the input of the first linear layers of attention and MLP, and "
                f"{type(backbone).__name__} has none whose names are known: use lora, ssf or bitfit"
            )
        return found

    def merge_into(self, backbone: Backbone) -> None:
        for layer in modules_with(backbone, "arc"):
            if layer is not backbone:
                op: Any = detach(layer, "arc")
                op.merge_into(layer)
        del backbone.arc
        call_qkv(backbone, False)
        super().merge_into(backbone)
