"""Modules that SPT adds to layers: low-rank updates and bottleneck adapters for blocks of rows."""

from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.inject import AdapterModule
from methods.layers.low_rank import AddedLowRank, LowRank

Blocks = dict[str, tuple[int, int]]
"""Rows of a layer that get a module of their own by name: all of it, or ``q``, ``k`` and ``v`` of a fused one."""


class ParallelLoRA(LowRank, AdapterModule):
    """``y + path(B A drop(x))`` for blocks of rows of a layer.

    Args:
        linear: The layer.
        blocks: The blocks.
        rank: Rank r of each update.
        dropout: Probability of a zero in x, which all blocks share.
        drop_path: Probability with which a sample gets no update.
    """

    def __init__(self, linear: nn.Linear, blocks: Blocks, rank: int, dropout: float, drop_path: float) -> None:
        super().__init__(linear, rank, 1.0, tuple(blocks.values()), 0.0 if "proj" in blocks else dropout, "input")
        self.drop_path = drop_path

    def reset(self) -> None:
        """Draw the factors as the original's runs did: with B not zero."""
        nn.init.trunc_normal_(self.A, std=0.02)
        nn.init.trunc_normal_(self.B, std=0.02)

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        x, mask = self.seen(args[0]), None
        if self.training and self.drop_path > 0:
            # B is linear: a sample without its h = A x has no update; each block drops samples of its own
            samples, tokens = x.shape[0], x[0].numel() // x.shape[-1]
            keep = 1 - self.drop_path
            kept = output.new_empty(len(self.rows), 1, samples, 1).bernoulli_(keep).div_(keep)
            mask = kept.expand(-1, len(self.A) // len(self.rows), -1, tokens).reshape(len(self.A), -1)
        return AddedLowRank.apply(output, x, *self.factors(), mask, self.rows, self.scale)


class Bottleneck(nn.Module):
    """``path(Up(GELU(Down(drop(x)))))`` of width ``rank``."""

    def __init__(self, dim_in: int, dim_out: int, rank: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim_in, rank), nn.Linear(rank, dim_out)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.dropout, self.drop_path = nn.Dropout(dropout), DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop_path(self.up(F.gelu(self.down(self.dropout(x)))))


class Adapters(AdapterModule):
    """``y + A(y)`` for blocks of a layer's output y; on ``proj`` ``y + A(x)``, where x is its input.

    Args:
        linear: The layer.
        blocks: The blocks.
        rank: Width of each bottleneck.
        dropout: Probability of a zero in what a bottleneck sees.
        drop_path: Probability with which a sample gets no update.
    """

    def __init__(self, linear: nn.Linear, blocks: Blocks, rank: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.parallel = "proj" in blocks
        dims = {block: last - first for block, (first, last) in blocks.items()}
        self.places = {block: blocks[block][0] // dim for block, dim in dims.items()}
        self.count = linear.out_features // max(dims.values())
        self.blocks = nn.ModuleDict()
        for block, dim in dims.items():
            dim_in, zeros = (linear.in_features, 0.0) if self.parallel else (dim, dropout)
            self.blocks[block] = Bottleneck(dim_in, dim, rank, zeros, drop_path)

    def reset(self) -> None:
        """Draw the weights as the original's runs did: with ``up`` not zero."""
        for linear in [module for module in self.modules() if isinstance(module, nn.Linear)]:
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        pieces = list(output.chunk(self.count, dim=-1))
        for block, place in self.places.items():
            y = pieces[place]
            pieces[place] = y + self.blocks[block](args[0] if self.parallel else y)
        return torch.cat(pieces, dim=-1) if len(pieces) > 1 else pieces[0]


class TokenDtype(AdapterModule):
    """Tokens in the dtype of the frozen weights, also where an fp32 class token that trains was joined to them."""

    like: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("like", torch.empty(0), persistent=False)  # is cast as frozen weights are

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output.to(self.like.dtype)
