"""BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models (arXiv:2106.10199).

``y = W0 x + b`` where only b trains.
"""

from collections.abc import Iterable
from typing import Any

from backbones.anatomy import NORMS, owner
from methods.core.base import PEFTMethod


class BitFit(PEFTMethod):
    """Bias tuning (Ben Zaken et al., ACL 2022, arXiv:2106.10199; "Bias" in VPT's tables).

    Args:
        bitfit_norm: Whether the biases of normalisation layers train too, as in VPT's tables.
        bitfit_lr_scale: Factor of the biases' learning rate, as ``BIAS_MULTIPLIER`` in VPT's code; the classifier
            trains with ``lr``.
    """

    shardable = True

    def __init__(self, bitfit_norm: bool = True, bitfit_lr_scale: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if bitfit_lr_scale <= 0:
            raise ValueError(f"bitfit_lr_scale={bitfit_lr_scale}: expected a positive factor")
        self.bitfit_norm, self.bitfit_lr_scale = bitfit_norm, bitfit_lr_scale

    def trainable_names(self) -> Iterable[str]:
        names = [name for name in self.used_names() if name.endswith("bias")]
        return [n for n in names if self.bitfit_norm or not isinstance(owner(self.backbone, n), NORMS)]

    def param_groups(self) -> list[dict[str, Any]]:
        groups = super().param_groups()
        if self.bitfit_lr_scale == 1:
            return groups
        names = {name for name in self.trainable_names() if not self.in_head(f"backbone.{name}")}
        biases = {id(parameter) for name, parameter in self.backbone.named_parameters() if name in names}
        for group in list(groups):
            scaled = [p for p in group["params"] if id(p) in biases]
            group["params"] = [p for p in group["params"] if id(p) not in biases]
            groups.append(group | {"params": scaled, "lr": self.bitfit_lr_scale * group.get("lr", self.lr)})
        return [group for group in groups if group["params"]]
