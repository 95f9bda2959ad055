"""Strong Baselines for Parameter Efficient Few-Shot Fine-tuning (arXiv:2304.01917).

``y = g (x - mean(x)) / std(x) + b`` where only g and b train.
"""

from collections.abc import Iterable

from torch import nn

from methods.core.base import PEFTMethod


class LNTuning(PEFTMethod):
    """LayerNorm tuning: the affine parameters of every LayerNorm train (Basu et al., AAAI 2024, arXiv:2304.01917)."""

    def trainable_names(self) -> Iterable[str]:
        norms = [name for name, module in self.backbone.named_modules() if isinstance(module, nn.LayerNorm)]
        names = [name for name in self.used_names() if name.rpartition(".")[0] in norms]
        if not names:
            raise ValueError(
                f"{type(self.backbone).__name__} has no LayerNorm to tune: use a backbone such as a ViT, Swin or "
                "ConvNeXt, or the method bitfit, which trains the biases of all layers and norms"
            )
        return names
