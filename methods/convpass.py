"""Convolutional Bypasses Are Better Vision Transformer Adapters (arXiv:2207.07039).

``x' = x + branch(u) + s up(g(conv3x3(g(down(u)))))`` with ``u = norm(x)`` and QuickGELU g.
"""

from typing import Any, Literal

import torch
from timm.layers.activations import quick_gelu
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.anatomy import drops_patches, patch_embedding, token_sequence
from backbones.blocks import MAPS, constant_blocks, width
from backbones.inject import AdapterModule, Backbone, check_free
from methods.core.base import PEFTMethod


class Grid(AdapterModule):
    """Rows and columns of the patches that pass a patch embedding or a block."""

    value: tuple[int, int]

    def of_images(self, module: Any, args: tuple[Any, ...]) -> None:
        """Keep the grid of a patch embedding, whose input are images (B, 3, H, W)."""
        self.value = module.dynamic_feat_size(args[0].shape[-2:])

    def of_maps(self, module: Any, args: tuple[Any, ...]) -> None:
        """Keep the grid of a block, whose input are maps (B, H, W, C)."""
        self.value = args[0].shape[1:3]


class Bypass(AdapterModule):
    """Adds ``scale * drop_path(up(drop(g(conv3x3(g(down(u)))))))`` of a branch's input u to its output, g QuickGELU.

    Args:
        dim: Channels C of the tokens.
        hidden: Channels h of the convolution.
        prefix: Number of tokens before the patches; each is convolved as an image of one pixel.
        grid: Grid of the patches.
        scale: Factor s of the update, dimensionless.
        dropout: Probability of dropping a hidden unit.
        xavier: Whether the convolution is initialised by Xavier uniform instead of the identity.
    """

    def __init__(
        self, dim: int, hidden: int, prefix: int, grid: Grid, scale: float, dropout: float, xavier: bool
    ) -> None:
        super().__init__()
        self.prefix, self.grid, self.scale = prefix, grid, scale
        self.down, self.up = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.tokens: Tensor | None = None  # u between the two hooks of one forward pass
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.up.weight)
        if xavier:
            nn.init.xavier_uniform_(self.conv.weight)
        else:
            nn.init.dirac_(self.conv.weight)
        for layer in (self.down, self.conv, self.up):
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, u: Tensor) -> Tensor:
        """Hidden units (B, N, h) of u (B, N, C) or (B, H, W, C)."""
        hidden = quick_gelu(self.down(u)).flatten(1, -2)  # (B, N, h)
        prefix, patches = hidden[:, : self.prefix], hidden[:, self.prefix :]
        patches = self.conv(patches.unflatten(1, self.grid.value).permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        # an image of one pixel has only padding around it, so only the centre of the kernel has an effect
        prefix = F.linear(prefix, self.conv.weight[:, :, 1, 1], self.conv.bias)
        return self.dropout(quick_gelu(torch.cat([prefix, patches], dim=1)))

    def keep_output(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self.tokens = output

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        assert self.tokens is not None, "the norm was not called before its branch"
        # a constant unit 1 carries the bias, so that update and sum are one product, also in the backward pass
        hidden = F.pad(self(self.tokens), (0, 1), value=1.0)
        self.tokens = None
        # module is the branch's drop path: a second call drops the bypass independently of the branch
        hidden = module.forward(hidden)
        up = torch.cat([self.up.weight.t(), self.up.bias[None]]) * self.scale
        return torch.addmm(output.flatten(0, -2), hidden.flatten(0, -2), up).view_as(output)


class Convpass(PEFTMethod):
    """Convolutional bypasses (Jie and Deng, 2022, arXiv:2207.07039).

    Args:
        convpass_dim: Channels h of the 3x3 convolution.
        convpass_scale: Factor s of the bypass; the paper searches it for each dataset.
        convpass_branches: Branches with a bypass. ``both``: attention and MLP. ``attn``: attention only.
        convpass_dropout: Probability of dropping a hidden unit.
        convpass_xavier: Whether the convolution is initialised by Xavier uniform instead of the identity.
    """

    mergeable = False
    unmergeable = "its bypasses are not linear"

    def __init__(
        self,
        convpass_dim: int = 8,
        convpass_scale: float = 0.1,
        convpass_branches: Literal["both", "attn"] = "both",
        convpass_dropout: float = 0.1,
        convpass_xavier: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if convpass_dim <= 0:
            raise ValueError(f"convpass_dim={convpass_dim}: expected a bottleneck of at least 1 channel")
        if not 0 <= convpass_dropout < 1:
            raise ValueError(f"convpass_dropout={convpass_dropout}: expected a probability of at least 0 and below 1")
        if convpass_scale <= 0:
            raise ValueError(f"convpass_scale={convpass_scale}: expected a positive number; at 0 nothing would train")
        self.convpass_dim, self.convpass_scale = convpass_dim, convpass_scale
        self.convpass_mlp = convpass_branches == "both"
        self.convpass_dropout, self.convpass_xavier = convpass_dropout, convpass_xavier

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        use = "Convpass convolves the tokens of each block"
        blocks = constant_blocks(backbone, use)
        maps, prefix, grid = all(isinstance(block, MAPS) for block in blocks), 0, Grid()
        if not maps:
            prefix = token_sequence(backbone, use).prefix
            if drops_patches(backbone):
                raise ValueError(f"{use}, and this backbone drops patches in training: leave patch_drop_rate out")
            patch_embedding(backbone).register_forward_pre_hook(grid.of_images)
        for block in blocks:
            if maps:
                grid = Grid()
                block.register_forward_pre_hook(grid.of_maps)
            self.add_bypass(block, "convpass_attn", block.norm1, block.drop_path1, prefix, grid)
            if self.convpass_mlp:
                self.add_bypass(block, "convpass_mlp", block.norm2, block.drop_path2, prefix, grid)

    def add_bypass(self, block: Any, name: str, norm: nn.Module, drop_path: nn.Module, prefix: int, grid: Grid) -> None:
        """Add a bypass to the branch between a norm and a drop path."""
        sizes = (width(block), self.convpass_dim, prefix, grid, self.convpass_scale, self.convpass_dropout)
        op = Bypass(*sizes, self.convpass_xavier)
        check_free(block, name)
        block.add_module(name, op)
        norm.register_forward_hook(op.keep_output)
        drop_path.register_forward_hook(op.hook)
