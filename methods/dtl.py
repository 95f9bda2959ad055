"""DTL: Disentangled Transfer Learning for Visual Recognition (arXiv:2312.07856).

``h_i = h_{i-1} + B_i A_i x_i`` for the input x_i of block i, and ``x_{i+1} = block_i(x_i) + swish(h_i)`` from block M
on, with ``swish(h) = h sigmoid(beta h)``. DTL+ puts one depthwise convolution behind all swishes.
"""

from functools import partial
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from backbones.anatomy import drops_patches, token_grid, token_sequence
from backbones.inject import Backbone
from methods.core.base import PEFTMethod


class Gather(nn.Module):
    """Low-rank layer ``B A x`` of tokens x (B, N, C).

    Args:
        dim: Width C of a token.
        rank: Rank r.
    """

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.A, self.B = nn.Parameter(torch.empty(rank, dim)), nn.Parameter(torch.zeros(dim, rank))
        nn.init.kaiming_uniform_(self.A, a=sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.A), self.B)


class CompactSideNetwork(nn.Module):
    """Side network that gathers from the input of each block and feeds back behind the later blocks.

    Args:
        depth: Number of blocks.
        first: Index of the first block with feedback.
        dim: Width C of a token.
        rank: Rank r of the low-rank layers.
        beta: Slope of the swish.
        kernel: Size of the depthwise convolution; 0 for none.
        prefix: Number of class and register tokens, which the convolution leaves out.
    """

    def __init__(self, depth: int, first: int, dim: int, rank: int, beta: float, kernel: int, prefix: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Gather(dim, rank) for _ in range(depth))
        self.conv = nn.Conv2d(dim, dim, kernel, padding="same", groups=dim, bias=False) if kernel else None
        self.depth, self.first, self.beta, self.prefix = depth, first, beta, prefix
        self.grid = (0, 0)  # rows and columns of the patches
        self.h: Tensor | None = None  # (B, N, C) between two blocks of one forward pass

    def gather(self, index: int, module: nn.Module, args: tuple[Any, ...]) -> None:
        update = self.layers[index](args[0])
        self.h = update if index == 0 or self.h is None else self.h + update

    def feed_back(self, index: int, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        h = self.h
        assert h is not None, "no image has passed the blocks before"
        if index == self.depth - 1:
            self.h = None
        if index < self.first:
            return output
        return output + self.fuse(h * torch.sigmoid(self.beta * h)).to(output.dtype)

    def fuse(self, h: Tensor) -> Tensor:
        """Convolution over the patches of h (B, N, C)."""
        if self.conv is None:
            return h
        before, patches = h[:, : self.prefix], h[:, self.prefix :]
        patches = self.conv(patches.mT.unflatten(2, self.grid)).flatten(2).mT
        return torch.cat([before.to(patches.dtype), patches], dim=1)


class DTL(PEFTMethod):
    """Disentangled transfer learning (Fu et al., AAAI 2024, arXiv:2312.07856).

    Blocks before the feedback keep nothing for gradients but their inputs.

    Args:
        dtl_rank: Rank r of the low-rank layers.
        dtl_feedback: Number M, from 1, of the first block whose output gets feedback; by default the first one of the
            second half, 7 of 12.
        dtl_beta: Slope of the swish; 100 is close to a ReLU.
        dtl_kernel: Size of the depthwise convolution of DTL+, which all blocks share; 0 for DTL.
    """

    mergeable = False
    unmergeable = "its side network stays beside the backbone"

    def __init__(
        self,
        dtl_rank: int = 2,
        dtl_feedback: int | None = None,
        dtl_beta: float = 100.0,
        dtl_kernel: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if dtl_rank < 1:
            raise ValueError(f"dtl_rank={dtl_rank}: expected a positive rank")
        if dtl_beta <= 0:
            raise ValueError(f"dtl_beta={dtl_beta}: expected a positive slope")
        if dtl_kernel < 0 or (dtl_kernel and dtl_kernel % 2 == 0):
            raise ValueError(f"dtl_kernel={dtl_kernel}: expected an odd size, or 0 for no convolution")
        self.dtl_rank, self.dtl_feedback, self.dtl_beta, self.dtl_kernel = dtl_rank, dtl_feedback, dtl_beta, dtl_kernel

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        sequence = token_sequence(backbone, "DTL gathers from the tokens of a plain ViT")
        depth = len(sequence.blocks)
        first = depth // 2 + 1 if self.dtl_feedback is None else self.dtl_feedback
        if not 1 <= first <= depth:
            raise ValueError(f"dtl_feedback={first}: expected the number of a block, 1 to {depth}")
        if self.dtl_kernel and drops_patches(backbone):
            raise ValueError(
                "DTL's convolution needs all patches: leave patch_drop_rate out, or pass --model.dtl_kernel 0"
            )
        sizes = (self.dtl_rank, self.dtl_beta, self.dtl_kernel)
        self.side = CompactSideNetwork(depth, first - 1, sequence.width, *sizes, sequence.prefix)
        for index, block in enumerate(sequence.blocks):
            block.register_forward_pre_hook(partial(self.side.gather, index))
            block.register_forward_hook(partial(self.side.feed_back, index))

    def features(self, x: Any) -> Any:
        if self.adapted:
            self.side.grid = token_grid(self.backbone, (x.shape[2], x.shape[3]))
        return super().features(x)

    def recompute(self, enabled: bool) -> None:
        # without the hooks of the block, because the side network goes on from block to block; timm would repeat them
        for block in self.backbone.blocks[self.side.first + 1 :]:  # the others keep nothing
            if enabled:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
            else:
                vars(block).pop("forward", None)
