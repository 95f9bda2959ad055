"""Contract of a model whose frozen features can be computed once and used in every epoch."""

from abc import abstractmethod
from typing import Any

from torch import Tensor

from lightning_modules.adapted import AdaptedTask
from lightning_modules.batch import Features


class ReusableFeatures(AdaptedTask):
    """A task in whose backbone nothing trains, so that its features stay the same."""

    @abstractmethod
    def frozen_layers(self) -> str:
        """Name of the frozen features this method reads; part of the feature cache's key.

        Raises:
            ValueError: If the options make the method train in the backbone, with the reason.
        """

    @abstractmethod
    def frozen_features(self, inputs: Any) -> tuple[Tensor, ...]:
        """These features of inputs, such as images (B, 3, H, W), each with B rows."""

    @abstractmethod
    def forward_frozen(self, features: tuple[Tensor, ...]) -> Any:
        """Outputs of the model for what ``frozen_features`` returned."""

    def forward(self, inputs: Any) -> Any:
        """Outputs of the model for inputs, or for ``Features`` of them."""
        if isinstance(inputs, Features):
            with self.mixed_dtypes():
                return self.forward_frozen(tuple(inputs.tensors))
        return super().forward(inputs)
