"""Towards Efficient Visual Adaption via Structural Re-parameterization (arXiv:2302.08106).

``u' = u + s up(down(u))`` for the input u of a layer; without an activation, the adapter merges into that layer.
"""

from typing import Any, Literal

import torch
from timm.models.convnext import ConvNeXtBlock
from timm.models.eva import EvaBlock
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.anatomy import transformer_blocks
from backbones.inject import AdapterModule, Backbone, check_free, detach, modules_with
from methods.core.base import PEFTMethod


class LinearAdapter(AdapterModule):
    """Rewrites a layer's input u as ``u + scale * (up(drop(down(u))))``, where ``up`` is block-diagonal.

    Args:
        dim: Channels C of the input.
        hidden: Width h of the bottleneck.
        groups: Number of blocks of ``up``. Each maps h/groups hidden units to C/groups outputs.
        scale: Factor s of the update, dimensionless.
        dropout: Probability of dropping a hidden unit.
        spatial: Whether the input is (B, C, H, W) instead of (B, ..., C).
    """

    def __init__(self, dim: int, hidden: int, groups: int, scale: float, dropout: float, spatial: bool) -> None:
        super().__init__()
        self.groups, self.scale, self.spatial = groups, scale, spatial
        self.down = nn.Linear(dim, hidden)
        self.dropout = nn.Dropout(dropout)
        self.up_weight = nn.Parameter(torch.zeros(dim, hidden // groups))
        self.up_bias = nn.Parameter(torch.zeros(dim))
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    @property
    def up(self) -> Tensor:
        """Dense (h, C) matrix of the grouped projection, times s, because this costs less than scaling the update."""
        # (h, C) and not (C, h), because its gradient takes a quarter of the time on a CPU
        return self.scale * torch.block_diag(*[weight.t() for weight in self.up_weight.chunk(self.groups)])

    def pre_hook(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        u, *rest = args
        shift = self.scale * self.up_bias
        if self.spatial:
            hidden = F.conv2d(u, self.down.weight[:, :, None, None], self.down.bias)
            return u + F.conv2d(self.dropout(hidden), self.up.t()[:, :, None, None], shift), *rest
        # a constant unit 1 carries the bias, so that update and sum are one product, also in the backward pass
        hidden = F.pad(self.dropout(self.down(u)), (0, 1), value=1.0).flatten(0, -2)
        return torch.addmm(u.flatten(0, -2), hidden, torch.cat([self.up, shift[None]])).view_as(u), *rest

    def merge_into(self, layer: Any) -> None:
        """Merge M = I + s up down and c = s (up a + b) into a linear layer: W' = W M, bias' = bias + W c."""
        weight = layer.weight.flatten(1)
        weighted = weight @ self.up.t()  # (out, h), so that no dense (C, C) matrix is needed
        shift = weighted @ self.down.bias + self.scale * weight @ self.up_bias
        layer.bias = nn.Parameter(shift if layer.bias is None else layer.bias + shift)
        layer.weight.add_((weighted @ self.down.weight).view_as(layer.weight))


class RepAdapter(PEFTMethod):
    """Structurally re-parameterised adapters (Luo et al., 2023, arXiv:2302.08106).

    Args:
        repadapter_dim: Width h of the bottleneck.
        repadapter_groups: Groups of the up projection.
        repadapter_scale: Factor s of the adapter; the paper searches it for each dataset.
        repadapter_branches: Branches with an adapter before them. ``both``: attention and MLP. ``attn``: attention
            only. In a ConvNeXt, the depthwise convolution takes the place of attention.
        repadapter_dropout: Probability of dropping a hidden unit.
    """

    def __init__(
        self,
        repadapter_dim: int = 8,
        repadapter_groups: int = 2,
        repadapter_scale: float = 1.0,
        repadapter_branches: Literal["both", "attn"] = "both",
        repadapter_dropout: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if repadapter_dim <= 0:
            raise ValueError(f"repadapter_dim={repadapter_dim}: expected a bottleneck of at least 1 channel")
        if not 0 <= repadapter_dropout < 1:
            raise ValueError(
                f"repadapter_dropout={repadapter_dropout}: expected a probability of at least 0 and below 1"
            )
        if repadapter_scale <= 0:
            raise ValueError(
                f"repadapter_scale={repadapter_scale}: expected a positive number; at 0 nothing would train"
            )
        if repadapter_groups <= 0 or repadapter_dim % repadapter_groups:
            raise ValueError(
                f"repadapter_groups={repadapter_groups}: expected a positive divisor of repadapter_dim={repadapter_dim}"
            )
        self.repadapter_dim, self.repadapter_groups = repadapter_dim, repadapter_groups
        self.repadapter_scale, self.repadapter_dropout = repadapter_scale, repadapter_dropout
        self.repadapter_mlp = repadapter_branches == "both"

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        blocks = [m for m in backbone.modules() if isinstance(m, ConvNeXtBlock)] or transformer_blocks(backbone)
        for block in blocks:
            if isinstance(block, EvaBlock):
                raise ValueError("RepAdapter: EVA's attention does not call its qkv layer; use a ViT, Swin or ConvNeXt")
            self.add_adapter(block.conv_dw if isinstance(block, ConvNeXtBlock) else block.attn.qkv)
            if self.repadapter_mlp:
                self.add_adapter(block.mlp.fc1)

    def add_adapter(self, layer: Any) -> None:
        """Add an adapter before a layer."""
        spatial = isinstance(layer, nn.Conv2d)
        dim = layer.in_channels if spatial else layer.in_features
        if dim % self.repadapter_groups:
            raise ValueError(f"repadapter_groups={self.repadapter_groups}: expected a divisor of the width {dim}")
        op = LinearAdapter(
            dim, self.repadapter_dim, self.repadapter_groups, self.repadapter_scale, self.repadapter_dropout, spatial
        )
        check_free(layer, "repadapter")
        layer.add_module("repadapter", op)
        layer.register_forward_pre_hook(op.pre_hook)

    def merge_into(self, backbone: Backbone) -> None:
        for layer in modules_with(backbone, "repadapter"):
            # an adapter before a depthwise convolution stays, because merged it would be a dense one, wrong at borders
            if layer.weight[0].numel() == layer.repadapter.down.in_features:
                op = detach(layer, "repadapter")
                assert isinstance(op, LinearAdapter)
                op.merge_into(layer)
        super().merge_into(backbone)
