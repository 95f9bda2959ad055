"""Parameter-Efficient Transfer Learning for NLP (arXiv:1902.00751).

``o' = o + up(act(down(o)))`` for the output o of a branch of a transformer block.
"""

import warnings
from typing import Any, Literal, NamedTuple

import torch
from timm.layers import DropPath
from timm.layers.activations import QuickGELU
from torch import Tensor, nn

from backbones.anatomy import per_block
from backbones.blocks import attention_blocks, channels_first, convolutional_blocks, has, width
from backbones.inject import AdapterModule, Backbone, attach
from methods.core.base import PEFTMethod

Init = Literal["houlsby", "lora", "xavier", "trunc_normal", "vpt_dead_zero"]


class Placement(NamedTuple):
    """Places of a paper's adapters inside a block, with the settings of the paper."""

    sites: tuple[str, ...]  # modules whose output o becomes o + A(o); "" is the block itself
    activation: type[nn.Module] = nn.GELU
    init: Init = "houlsby"
    dropout: float = 0.0
    drop_path: float = 0.0
    scaled: bool = False  # whether each channel of A(o) has a learned scale


PLACEMENTS = {
    "houlsby": Placement(("attn", "mlp")),
    "pfeiffer": Placement(("mlp",)),
    "noah": Placement(("drop_path2",), activation=QuickGELU, init="xavier", dropout=0.1),
    "adapter_plus": Placement(("",), drop_path=0.1, scaled=True),
}


class Bottleneck(AdapterModule):
    """Residual bottleneck ``o + g * drop_path(up(drop(act(down(o)))))``.

    Args:
        dim: Channels C of the feature (B, ..., C).
        hidden: Width h of the bottleneck.
        placement: Activation, dropout and scale.
        init: Initial weights; see ``adapter_init`` of ``Adapter``.
        spatial: Whether the feature is (B, C, H, W) instead of (B, ..., C).
    """

    def __init__(self, dim: int, hidden: int, placement: Placement, init: Init, spatial: bool = False) -> None:
        super().__init__()
        self.spatial = spatial
        self.down, self.up = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.act = placement.activation()
        self.dropout, self.drop_path = nn.Dropout(placement.dropout), DropPath(placement.drop_path)
        self.scale = nn.Parameter(torch.ones(dim)) if placement.scaled else None
        for linear in (self.down, self.up):
            nn.init.zeros_(linear.bias)
            if init == "houlsby":
                nn.init.trunc_normal_(linear.weight, std=0.01, a=-0.02, b=0.02)
            elif init == "trunc_normal":
                nn.init.trunc_normal_(linear.weight, std=0.02)
            elif init == "xavier":
                nn.init.xavier_uniform_(linear.weight)
                nn.init.normal_(linear.bias, std=1e-6)
            elif init == "vpt_dead_zero" or linear is self.up:
                nn.init.zeros_(linear.weight)  # with "lora", ``down`` keeps torch's Kaiming uniform

    def update(self, feature: Tensor) -> Tensor:
        """Update (B, ..., C) of a feature (B, ..., C), without scale and drop path."""
        return self.up(self.dropout(self.act(self.down(feature))))

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        update = self.update(output.movedim(1, -1) if self.spatial else output)
        if self.scale is not None:
            update = update * self.scale.to(update.dtype)
        return output + self.drop_path(update.movedim(-1, 1) if self.spatial else update)


class Site(NamedTuple):
    """A place of an adapter.

    Args:
        module: Module whose output the adapter changes.
        dim: Channels C of the output.
        spatial: Whether the output is (B, C, H, W) instead of (B, ..., C).
    """

    module: nn.Module
    dim: int
    spatial: bool


class Adapter(PEFTMethod):
    """Bottleneck adapters (Houlsby et al., ICML 2019, arXiv:1902.00751).

    In a convolutional network, one adapter changes the output of each residual block, in all placements.

    Args:
        adapter_placement: Place of the adapters in each block. ``houlsby``: after the attention and after the MLP.
            ``pfeiffer``: after the MLP (arXiv:2005.00247). ``noah``: after the MLP's drop path, with QuickGELU and
            dropout 0.1 (arXiv:2206.04673). ``adapter_plus``: after the block, with a scale per channel and drop path
            0.1 (Adapter+, arXiv:2406.06820).
        adapter_dim: Width h of the bottleneck.
        adapter_dims: One width for each block, first to last, in place of ``adapter_dim``; a block with 0 has no
            adapter (arXiv:2206.04673).
        adapter_init: Initial weights. ``houlsby``: normal of std 0.01, cut at two std. ``lora``: ``up`` is zero, so
            training starts from exactly the frozen backbone. ``xavier``: Xavier uniform. ``trunc_normal``: normal of
            std 0.02, as in NOAH's code, which draws its Xavier weights anew. ``vpt_dead_zero``: all zero, as in VPT's
            code; then only one bias per block ever learns. By default the init of the placement's paper (``houlsby``
            for ``pfeiffer``).
    """

    shardable = True
    mergeable = False
    unmergeable = "its adapters are not linear"

    def __init__(
        self,
        adapter_placement: Literal["houlsby", "pfeiffer", "noah", "adapter_plus"] = "pfeiffer",
        adapter_dim: int = 8,
        adapter_dims: list[int] | None = None,
        adapter_init: Init | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if adapter_dim <= 0:
            raise ValueError(f"adapter_dim={adapter_dim}: expected a bottleneck of at least 1 channel")
        self.placement, self.adapter_dim = PLACEMENTS[adapter_placement], adapter_dim
        self.adapter_dims = adapter_dims
        self.adapter_init = adapter_init or self.placement.init
        if adapter_init == "vpt_dead_zero":
            warnings.warn(
                "adapter_init='vpt_dead_zero': with both matrices zero their gradients stay zero, so only the bias of "
                "'up' trains; use 'houlsby' or 'lora' unless VPT's printed numbers are the aim",
                stacklevel=2,
            )

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        blocks = self.sites(backbone)
        widths = per_block("adapter_dims", self.adapter_dims, self.adapter_dim, len(blocks))
        for sites, hidden in zip(blocks, widths, strict=True):
            for site in sites if hidden else ():
                op = Bottleneck(site.dim, hidden, self.placement, self.adapter_init, site.spatial)
                attach(site.module, "adapter", op)

    def sites(self, backbone: Backbone) -> list[list[Site]]:
        """Places of adapters in each block.

        Raises:
            ValueError: If the backbone has no blocks with such places.
        """
        names = self.placement.sites
        blocks = [block for block in attention_blocks(backbone) if has(block, tuple(name for name in names if name))]
        if blocks:
            return [[Site(b.get_submodule(n), width(b), channels_first(b, n)) for n in names] for b in blocks]
        maps = [(block, block.get_submodule(layers.last)) for block, layers in convolutional_blocks(backbone)]
        if not maps:
            raise ValueError(
                f"adapters change the output of a block or of its {', '.join(filter(None, names)) or 'branches'}, and "
                f"{type(backbone).__name__} has no blocks with these places: use lora, ssf, bitfit or gps"
            )
        return [[Site(block, last.weight.shape[0], spatial=True)] for block, last in maps]
