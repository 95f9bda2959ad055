"""Full fine-tuning: ``W = W0 + dW`` with a free dW for every parameter."""

from collections.abc import Iterable
from typing import Any

from timm.optim import param_groups_layer_decay

from methods.core.base import PEFTMethod


class Full(PEFTMethod):
    """Full fine-tuning: every used parameter of the backbone trains, from pretrained or random weights.

    Args:
        full_layer_decay: Factor d of the learning rate from a layer to the one before it: the layer that is i layers
            below the classifier trains at ``lr * d**i``, as in BEiT and MAE. 1 for one learning rate. Layers are those
            of timm: for a ViT the embeddings and each block; the last norm belongs to the last block (in BEiT and MAE
            to the classifier).
    """

    def __init__(self, full_layer_decay: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < full_layer_decay <= 1:
            raise ValueError(f"full_layer_decay={full_layer_decay}: expected a factor above 0 and at most 1")
        self.full_layer_decay = full_layer_decay

    def trainable_names(self) -> Iterable[str]:
        return self.used_names()

    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups, with ``full_layer_decay`` below 1 one or two for each layer, the last layer first."""
        groups = super().param_groups()
        if self.full_layer_decay == 1:
            return groups
        layers = param_groups_layer_decay(self.backbone, layer_decay=self.full_layer_decay)
        scales = {parameter: layer["lr_scale"] for layer in layers for parameter in layer["params"]}
        found: list[dict[str, Any]] = []
        for scale in sorted({1.0, *scales.values()}, reverse=True):
            for group in groups:
                own = [p for p in group["params"] if scales.get(p, 1.0) == scale]  # heads beside the backbone have 1
                found.append(group | {"params": own, "lr": group.get("lr", self.lr) * scale})
        return [group for group in found if group["params"]]
