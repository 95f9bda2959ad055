"""Towards Efficient Visual Adaption via Structural Re-parameterization (arXiv:2302.08106).

``u' = u + s up(down(u))`` for the input u of a layer; without an activation, the adapter merges into that layer.
"""

from typing import Any, Literal

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.anatomy import call_qkv
from backbones.blocks import ATTENTION_INPUTS, MLP_INPUTS, attention_blocks, convolutional_blocks, layers_named
from backbones.inject import AdapterModule, Backbone, attach_before, detach, modules_with
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
        bias: Whether both projections have biases.
    """

    def __init__(
        self, dim: int, hidden: int, groups: int, scale: float, dropout: float, spatial: bool, bias: bool
    ) -> None:
        super().__init__()
        self.groups, self.scale, self.spatial = groups, scale, spatial
        self.down = nn.Linear(dim, hidden, bias)
        self.dropout = nn.Dropout(dropout)
        self.up_weight = nn.Parameter(torch.zeros(dim, hidden // groups))
        self.up_bias = nn.Parameter(torch.zeros(dim)) if bias else None
        nn.init.xavier_uniform_(self.down.weight)
        if bias:
            nn.init.zeros_(self.down.bias)

    @property
    def up(self) -> Tensor:
        """Dense (h, C) matrix of the grouped projection, times s, because this costs less than scaling the update."""
        # (h, C) and not (C, h), because its gradient takes a quarter of the time on a CPU
        return self.scale * torch.block_diag(*[weight.t() for weight in self.up_weight.chunk(self.groups)])

    def pre_hook(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        u, *rest = args
        shift = None if self.up_bias is None else self.scale * self.up_bias
        if self.spatial:
            hidden = F.conv2d(u, self.down.weight[:, :, None, None], self.down.bias)
            return u + F.conv2d(self.dropout(hidden), self.up.t()[:, :, None, None], shift), *rest
        hidden, up = self.dropout(self.down(u)), self.up
        if shift is not None:
            # a constant unit 1 carries the bias, so that update and sum are one product, also in the backward pass
            hidden, up = F.pad(hidden, (0, 1), value=1.0), torch.cat([up, shift[None]])
        return torch.addmm(u.flatten(0, -2), hidden.flatten(0, -2), up).view_as(u), *rest

    def merge_into(self, layer: Any) -> None:
        """Merge M = I + s up down and c = s (up a + b) into a layer: W' = W M, bias' = bias + W c."""
        weight = layer.weight.flatten(2).movedim(1, -1) if layer.weight.dim() > 2 else layer.weight  # (out, ..., in)
        weighted = weight @ self.up.t()  # (out, ..., h), so that no dense (C, C) matrix is needed
        if self.up_bias is not None:
            shift = weighted @ self.down.bias + self.scale * weight @ self.up_bias
            layer.bias.add_(shift.flatten())
        change = weighted @ self.down.weight
        layer.weight.add_((change.movedim(-1, 1) if change.dim() > 2 else change).reshape(layer.weight.shape))


class RepAdapter(PEFTMethod):
    """Structurally re-parameterised adapters (Luo et al., 2023, arXiv:2302.08106).

    An adapter has no biases if its layer has none or pads with zeros, because no merged weight could hold them. In
    convolutional networks other than ConvNeXt, the adapters are before the first full convolution of each block.

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
        call_qkv(backbone)
        layers = self.layers(backbone)
        if not layers:
            raise ValueError(
                "RepAdapter changes the input of linear layers and convolutions of residual blocks, and "
                f"{type(backbone).__name__} has no blocks whose layers are known: use lora, ssf, bitfit or gps"
            )
        for layer in layers:
            self.add_adapter(layer)

    def layers(self, backbone: Backbone) -> list[Any]:
        """Layers with an adapter before them."""
        found: list[Any] = []
        for block in attention_blocks(backbone):
            found += layers_named(block.attn, ATTENTION_INPUTS)
            found += layers_named(block.mlp, MLP_INPUTS) if self.repadapter_mlp else []
        if found:
            return [layer for layer in found if merges(layer)]
        for block, names in convolutional_blocks(backbone):
            both = [names.spatial, names.first if self.repadapter_mlp or not names.spatial else None]
            layers = [block.get_submodule(name) for name in both if name]
            found += [layer for layer in layers if merges(layer) or names.spatial]
        return found

    def add_adapter(self, layer: Any) -> None:
        """Add an adapter before a layer."""
        spatial = isinstance(layer, nn.Conv2d)
        dim = layer.in_channels if spatial else layer.in_features
        if dim % self.repadapter_groups:
            raise ValueError(f"repadapter_groups={self.repadapter_groups}: expected a divisor of the width {dim}")
        padded = spatial and layer.groups == 1 and layer.kernel_size != (1, 1)
        sizes = (dim, self.repadapter_dim, self.repadapter_groups, self.repadapter_scale, self.repadapter_dropout)
        op = LinearAdapter(*sizes, spatial, bias=layer.bias is not None and not padded)
        attach_before(layer, "repadapter", op)

    def merge_into(self, backbone: Backbone) -> None:
        for layer in modules_with(backbone, "repadapter"):
            # an adapter before a depthwise convolution stays, because merged it would be a dense one, wrong at borders
            if merges(layer):
                op = detach(layer, "repadapter")
                assert isinstance(op, LinearAdapter)
                op.merge_into(layer)
        call_qkv(backbone, False)
        super().merge_into(backbone)


def merges(layer: nn.Module) -> bool:
    """Whether a linear map of a layer's input merges into its weight."""
    if isinstance(layer, nn.Conv2d):
        return type(layer) in (nn.Conv2d, Conv2dSame) and layer.groups == 1
    return isinstance(layer, nn.Linear)
