"""Full fine-tuning: ``W = W0 + dW`` with a free dW for every parameter."""

from collections.abc import Iterable

from methods.core.base import PEFTMethod


class Full(PEFTMethod):
    """Full fine-tuning: every used parameter of the backbone trains, from pretrained or random weights."""

    def trainable_names(self) -> Iterable[str]:
        return self.used_names()
