"""Full fine-tuning: ``W = W0 + dW`` with a free dW for every parameter."""

from collections.abc import Iterable

from methods.core.base import PEFTMethod


class Full(PEFTMethod):
    """Full fine-tuning: every parameter of the backbone trains, from pretrained or random weights."""

    def trainable_names(self) -> Iterable[str]:
        return [name for name, _ in self.backbone.named_parameters()]
