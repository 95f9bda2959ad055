"""Modules of SPT: low-rank updates and bottleneck adapters for blocks of rows of a layer (arXiv:2303.08566)."""

from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.inject import AdapterModule
from methods.layers.low_rank import AddedLowRank, LowRank

Blocks = dict[str, tuple[int, int]]
"""Blocks of rows by name, each as (first row, last row + 1): the whole layer, or ``q``, ``k``, ``v`` of a fused one."""


class ParallelLoRA(LowRank):
    """``y + path(B A drop(x))`` for blocks of rows of a layer.

    Args:
        linear: The layer.
        blocks: The blocks.
        rank: Rank r of each update.
        dropout: Dropout probability of x; all blocks share the mask.
        drop_path: Probability that a sample gets no update.
    """

    def __init__(self, linear: nn.Linear, blocks: Blocks, rank: int, dropout: float, drop_path: float) -> None:
        super().__init__(linear, rank, 1.0, tuple(blocks.values()), 0.0 if "proj" in blocks else dropout, "input")
        self.drop_path = drop_path

    def reset(self) -> None:
        """Draw the factors as in the published runs: with B not zero."""
        nn.init.trunc_normal_(self.A, std=0.02)
        nn.init.trunc_normal_(self.B, std=0.02)

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        x, mask = self.drop_input(args[0]), None
        if self.training and self.drop_path > 0:
            # a sample gets no update if its h = A x is zero; each block draws its own samples
            samples, tokens = x.shape[0], x[0].numel() // x.shape[-1]
            keep = 1 - self.drop_path
            kept = output.new_empty(len(self.rows), 1, samples, 1).bernoulli_(keep).div_(keep)
            mask = kept.expand(-1, len(self.A) // len(self.rows), -1, tokens).reshape(len(self.A), -1)
        A, B = self.factors()
        sums = AddedLowRank.apply(output.flatten(0, -2), x.flatten(0, -2), A, B, mask, self.rows, self.scale)
        return sums.view_as(output)


class Bottleneck(nn.Module):
    """Bottleneck ``path(Up(GELU(Down(drop(x)))))`` of width ``rank``."""

    def __init__(self, dim_in: int, dim_out: int, rank: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim_in, rank), nn.Linear(rank, dim_out)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.dropout, self.drop_path = nn.Dropout(dropout), DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop_path(self.up(F.gelu(self.down(self.dropout(x)))))


class Adapters(AdapterModule):
    """``y + A(y)`` for blocks of a layer's output y; for ``proj`` ``y + A(x)`` with the layer's input x.

    Args:
        linear: The layer.
        blocks: The blocks.
        rank: Width of each bottleneck.
        dropout: Dropout probability of the input of a bottleneck.
        drop_path: Probability that a sample gets no update.
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
        """Draw the weights as in the published runs: with ``up`` not zero."""
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
    """Casts tokens to the dtype of the frozen weights, because a trained fp32 class token makes all of them fp32."""

    like: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("like", torch.empty(0), persistent=False)  # cast together with the frozen weights

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output.to(self.like.dtype)


def module_size(kind: str, rank: int, block: str, dim_in: int, dim_out: int) -> int:
    """Number of parameters of a module for a block of rows.

    Args:
        kind: ``lora`` or ``adapter``.
        rank: Rank of a LoRA or width of an adapter.
        block: Name of the block of rows, such as ``q``; the adapter at ``proj`` reads the layer's input.
        dim_in: Inputs of the layer.
        dim_out: Rows of the block.
    """
    if kind == "lora":
        return rank * (dim_in + dim_out)
    read = dim_in if block == "proj" else dim_out
    return rank * (read + dim_out) + rank + dim_out
