"""Partial fine-tuning, "Partial-k" in the tables of Visual Prompt Tuning (arXiv:2203.12119).

``W = W0 + dW`` for the parameters of the last k blocks and the final norm; all others are frozen.
"""

from collections.abc import Iterable
from typing import Any

from backbones.blocks import last_blocks
from methods.core.base import PEFTMethod

FINAL_NORMS = ("norm", "fc_norm", "head.norm")  # of ViT and Swin, of ViT with average pooling, of ConvNeXt


class Partial(PEFTMethod):
    """Partial fine-tuning: the last blocks and the final norm train ("Partial-k" in VPT's tables).

    Args:
        partial_blocks: Number k of blocks that train, counted from the last one.
    """

    def __init__(self, partial_blocks: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if partial_blocks <= 0:
            raise ValueError(f"partial_blocks={partial_blocks}: expected at least 1; linear_probe trains no block")
        self.partial_blocks = partial_blocks

    def trainable_names(self) -> Iterable[str]:
        modules = dict(self.backbone.named_modules())
        try:
            last = last_blocks(self.backbone, self.partial_blocks)
        except ValueError as error:
            raise ValueError(f"partial_blocks={self.partial_blocks}: expected at most {error}") from error
        names = [name for name, m in modules.items() if name in FINAL_NORMS or any(m is block for block in last)]
        return [name for name in self.used_names() if name.startswith(tuple(f"{n}." for n in names))]
