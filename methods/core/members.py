"""Verbs of a task for several models (members) that share one frozen backbone."""

from typing import Any

from torch import Tensor, nn
from torchmetrics import MetricCollection

from callbacks.features.reusable import ReusableFeatures
from lightning_modules.batch import Batch


class Members(ReusableFeatures):
    """A task of several models over one frozen backbone. Each verb of the task calls the verb of a member."""

    mergeable = False
    members: nn.ModuleList
    settings: dict[str, dict[str, Any]]  # options of each member by its name
    export_member: str
    best_member: str

    def each(self) -> list[Any]:
        return list(self.members)

    @property
    def chosen(self) -> Any:
        """Exported member."""
        name = self.best_member if self.export_member == "best" else self.export_member
        return self.members[list(self.settings).index(name)]

    # verbs of a task

    @property
    def backbone(self) -> Any:
        return self.each()[0].backbone

    def build(self) -> None:
        """Nothing to build, because each member builds its own backbone."""

    def heads(self) -> dict[str, nn.Module]:
        return self.each()[0].heads()

    def forward(self, inputs: Any) -> Any:
        """Outputs of the exported member."""
        return self.chosen(inputs)

    def predict_from(self, features: Any) -> Any:
        return self.chosen.predict_from(features)

    def frozen_layers(self) -> str:
        return self.each()[0].frozen_layers()

    def frozen_features(self, inputs: Any) -> tuple[Tensor, ...]:
        return self.each()[0].frozen_features(inputs)

    def forward_frozen(self, features: tuple[Tensor, ...]) -> Any:
        return self.chosen.forward_frozen(features)

    def losses(self, outputs: Any, targets: Any) -> dict[str, Tensor]:
        return self.chosen.losses(outputs, targets)

    def metrics(self) -> MetricCollection:
        return self.each()[0].metrics()

    def predictions(self, outputs: Any) -> Any:
        return self.chosen.predictions(outputs)

    def example_batch(self) -> Batch:
        return self.each()[0].example_batch()

    def identity(self) -> dict[str, Any]:
        return self.each()[0].identity()

    def method_name(self) -> str:
        return self.each()[0].method_name()

    def forget_warm_start(self) -> None:
        for member in self.each():
            member.forget_warm_start()
