"""Parameter-Efficient Transfer Learning for NLP (arXiv:1902.00751).

``o' = o + up(act(down(o)))`` for the output o of a branch of a transformer block.
"""

import warnings
from typing import Any, Literal, NamedTuple

import torch
from timm.layers import DropPath
from timm.layers.activations import QuickGELU
from torch import Tensor, nn

from backbones.anatomy import per_block, transformer_blocks
from backbones.inject import AdapterModule, Backbone, attach
from methods.core.base import PEFTMethod

Init = Literal["houlsby", "lora", "xavier", "vpt_dead_zero"]


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
    """

    def __init__(self, dim: int, hidden: int, placement: Placement, init: Init) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.act = placement.activation()
        self.dropout, self.drop_path = nn.Dropout(placement.dropout), DropPath(placement.drop_path)
        self.scale = nn.Parameter(torch.ones(dim)) if placement.scaled else None
        for linear in (self.down, self.up):
            nn.init.zeros_(linear.bias)
            if init == "houlsby":
                nn.init.trunc_normal_(linear.weight, std=0.01, a=-0.02, b=0.02)
            elif init == "xavier":
                nn.init.xavier_uniform_(linear.weight)
                nn.init.normal_(linear.bias, std=1e-6)
            elif init == "vpt_dead_zero" or linear is self.up:
                nn.init.zeros_(linear.weight)  # with "lora", ``down`` keeps torch's Kaiming uniform

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        update = self.up(self.dropout(self.act(self.down(output))))
        if self.scale is not None:
            update = update * self.scale.to(update.dtype)
        return output + self.drop_path(update)


class Adapter(PEFTMethod):
    """Bottleneck adapters (Houlsby et al., ICML 2019, arXiv:1902.00751).

    Args:
        adapter_placement: Place of the adapters in each block. ``houlsby``: after the attention and after the MLP.
            ``pfeiffer``: after the MLP (arXiv:2005.00247). ``noah``: after the MLP's drop path, with QuickGELU and
            dropout 0.1 (arXiv:2206.04673). ``adapter_plus``: after the block, with a scale per channel and drop path
            0.1 (Adapter+, arXiv:2406.06820).
        adapter_dim: Width h of the bottleneck.
        adapter_dims: One width for each block, first to last, in place of ``adapter_dim``; a block with 0 has no
            adapter (arXiv:2206.04673).
        adapter_init: Initial weights. ``houlsby``: normal of std 0.01, cut at two std. ``lora``: ``up`` is zero, so
            training starts from exactly the frozen backbone. ``xavier``: Xavier uniform. ``vpt_dead_zero``: all zero,
            as in VPT's code; then only one bias per block ever learns. By default the init of the placement's paper
            (``houlsby`` for ``pfeiffer``).
    """

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
        blocks = transformer_blocks(backbone)
        widths = per_block("adapter_dims", self.adapter_dims, self.adapter_dim, len(blocks))
        for block, width in zip(blocks, widths, strict=True):
            dim = block.norm2.weight.shape[0]
            for site in self.placement.sites if width else ():
                attach(block.get_submodule(site), "adapter", Bottleneck(dim, width, self.placement, self.adapter_init))
