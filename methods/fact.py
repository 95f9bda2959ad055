"""FacT: Factor-Tuning for Lightweight Adaptation on Vision Transformer (arXiv:2212.03145).

``dW = s V M^T U`` for each D x D update: factors U, V shared by all layers, and a core M of its own.
"""

from math import sqrt
from typing import Any, Literal

import torch
from torch import Tensor, nn

from backbones.anatomy import call_qkv
from backbones.inject import Backbone, check_free
from methods.core.base import PEFTMethod
from methods.layers.low_rank import LowRank, Rows
from methods.layers.low_rank_layers import add_low_rank, merge_low_rank

# range of each layer in the twelve D x D updates of a block: three of qkv, one of proj, four each of fc1 and fc2
PARTS = {"attn.qkv": (0, 3), "attn.proj": (3, 4), "mlp.fc1": (4, 8), "mlp.fc2": (8, 12)}


class Factors(nn.Module):
    """Factors of all updates: ``dW = s V M^T U`` with a core M (r, r) for each D x D matrix.

    Args:
        dim: Width D of the backbone.
        depth: Number of blocks L.
        rank: Rank r.
        form: Factorisation. ``tt``: free cores (L, 12, r, r). ``tk``: cores are sums over a tensor C (r, r, r) with
            weights P (r, 12 L).
    """

    def __init__(self, dim: int, depth: int, rank: int, form: Literal["tt", "tk"]) -> None:
        super().__init__()
        self.U = nn.Parameter(torch.empty(rank, dim).uniform_(-1 / sqrt(dim), 1 / sqrt(dim)))
        self.V = nn.Parameter(torch.zeros(dim, rank))
        if form == "tt":
            # torch's init of linear layers; the layer of fc2 has 4 r inputs, so its bound is half as large
            bound = torch.full((12, 1, 1), 1 / sqrt(rank))
            bound[8:] /= 2
            self.M = nn.Parameter(torch.empty(depth, 12, rank, rank).uniform_(-1, 1) * bound)
        else:
            self.C = nn.Parameter(nn.init.xavier_uniform_(torch.empty(rank, rank, rank)))
            self.P = nn.Parameter(nn.init.xavier_uniform_(torch.empty(rank, 12 * depth)))
        self.form = form

    def cores(self, block: int, first: int, last: int) -> Tensor:
        """Cores M (last - first, r, r) of updates ``first`` to ``last - 1`` of a block, as in ``x U^T M V^T``."""
        if self.form == "tt":
            return self.M[block, first:last]
        cores = self.C @ self.P[:, 12 * block + first : 12 * block + last]  # (r, r, n)
        if first < 4:
            return cores.permute(2, 0, 1)
        # as in the published code: chunks of fc1 and fc2 are cut across the last two dimensions, not along the last
        chunks = cores.reshape(len(cores), 4, len(cores)).transpose(0, 1)
        return chunks if first == 4 else chunks.transpose(1, 2)


class FacTUpdate(LowRank):
    """Update of one layer, computed from the shared factors.

    Args:
        factors: Factors that all layers share.
        block: Index of the block.
        parts: Range of the layer's updates in ``PARTS``, as (first, last + 1).
        rows: Blocks of output rows, one of D rows each.
        scale: Factor s.
        dropout: Probability of a zero between M and V.
    """

    def __init__(
        self, factors: Factors, block: int, parts: tuple[int, int], rows: Rows, scale: float, dropout: float
    ) -> None:
        nn.Module.__init__(self)
        self.register_buffer("order", None)
        self.shared = (factors,)  # in a tuple, otherwise each layer would save the factors as its child
        self.block, self.parts, self.rows, self.scale = block, parts, rows, scale
        self.dropout, self.dropout_at = dropout, "hidden"

    def factors(self) -> tuple[Tensor, Tensor]:
        (shared,) = self.shared
        with torch.autocast(shared.U.device.type, enabled=False):  # because A stays in fp32, as trained tensors do
            A = shared.cores(self.block, *self.parts).transpose(1, 2) @ shared.U  # (n, r, D)
        if len(self.rows) == 1:  # proj has one update; those of fc2 lie side by side along its inputs
            return A.transpose(0, 1).flatten(1), shared.V
        return A.flatten(0, 1), shared.V.repeat(len(self.rows), 1)


class FacT(PEFTMethod):
    """Factor-tuning (Jie & Deng, AAAI 2023, arXiv:2212.03145).

    Args:
        fact_form: Factorisation of the updates. ``tt``: tensor-train. ``tk``: Tucker.
        fact_rank: Rank r.
        fact_scale: Factor s of the updates; the paper searches powers of ten for each dataset.
        fact_dropout: Dropout probability of the r channels before V.
    """

    def __init__(
        self,
        fact_form: Literal["tt", "tk"] = "tt",
        fact_rank: int = 16,
        fact_scale: float = 1.0,
        fact_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if fact_rank < 1:
            raise ValueError(f"fact_rank={fact_rank}: expected a positive rank")
        if fact_scale <= 0:
            raise ValueError(f"fact_scale={fact_scale}: expected a positive number; at 0 nothing would train")
        if not 0 <= fact_dropout < 1:
            raise ValueError(f"fact_dropout={fact_dropout}: expected a probability of at least 0 and below 1")
        self.fact_form, self.fact_rank = fact_form, fact_rank
        self.fact_scale, self.fact_dropout = fact_scale, fact_dropout

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        layers = block_layers(backbone)
        dim = backbone.embed_dim
        if self.fact_rank > dim:
            raise ValueError(f"fact_rank={self.fact_rank}: expected 1 to {dim}, the width of the backbone")
        call_qkv(backbone)
        check_free(backbone, "fact")
        backbone.fact = Factors(dim, len(layers), self.fact_rank, self.fact_form)
        for index, block in enumerate(layers):
            for parts, linear in zip(PARTS.values(), block, strict=True):
                rows = tuple((first, first + dim) for first in range(0, linear.out_features, dim))
                options = (rows, self.fact_scale, self.fact_dropout)
                add_low_rank(linear, FacTUpdate(backbone.fact, index, parts, *options))

    def merge_into(self, backbone: Backbone) -> None:
        merge_low_rank(backbone)
        call_qkv(backbone, False)
        del backbone.fact
        super().merge_into(backbone)


def block_layers(backbone: Backbone) -> list[list[Any]]:
    """Layers qkv, proj, fc1 and fc2 of each block.

    Raises:
        ValueError: If their sizes are not multiples of one width.
    """
    layers: list[list[Any]] = []
    for block in getattr(backbone, "blocks", ()):
        modules, dim = dict(block.named_modules()), getattr(backbone, "embed_dim", 0)
        layers.append([modules[name] for name in PARTS if isinstance(modules.get(name), nn.Linear)])
        shapes = [tuple(linear.weight.shape) for linear in layers[-1]]
        if shapes != [(3 * dim, dim), (dim, dim), (4 * dim, dim), (dim, 4 * dim)]:
            layers = []
            break
    if not layers:
        raise ValueError(
            f"FacT needs blocks of one width D, with a qkv layer of 3 D outputs and an MLP of 4 D channels; "
            f"{type(backbone).__name__} has others: use LoRA there"
        )
    return layers
