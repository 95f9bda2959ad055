"""Base of methods that train single entries of the backbone's parameters."""

from typing import Any

from torch import Tensor

from backbones.anatomy import replaceable
from backbones.inject import Backbone
from methods.core.selective import Selective
from methods.layers.sparse import Entries, merge_entries, train_entries


class TrainsEntries(Selective):
    """A method that trains chosen entries of the backbone's parameters. All other entries are frozen."""

    scales_over_widths = False

    def score_targets(self) -> list[str]:
        """Names of all used parameters except those of the classifier and of recurrent layers."""
        return [name for name in replaceable(self.backbone, self.used_names()) if not self.in_head(f"backbone.{name}")]

    def entries(self) -> list[Any]:
        """All ``Entries`` of the backbone."""
        return [m for m in self.backbone.modules() if isinstance(m, Entries)]

    @property
    def entries_lr(self) -> float:
        """Peak learning rate of the entries."""
        return self.lr

    def chosen(self) -> dict[str, Tensor]:
        """Flat indices of the chosen entries by parameter name."""
        assert self.selection is not None
        return self.selection

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        train_entries(backbone, self.chosen())

    def merge_into(self, backbone: Backbone) -> None:
        merge_entries(backbone)
        super().merge_into(backbone)

    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups; entries of matrices have weight decay, entries of vectors do not."""
        decay = {True: self.weight_decay, False: 0.0}
        own = {id(e.values) for e in self.entries()}
        groups = super().param_groups()
        groups = [{**group, "params": [p for p in group["params"] if id(p) not in own]} for group in groups]
        for of_matrix, weight_decay in decay.items():
            values = [e.values for e in self.entries() if e.of_matrix == of_matrix]
            groups.append({"params": values, "weight_decay": weight_decay, "lr": self.entries_lr})
        return [group for group in groups if group["params"]]
