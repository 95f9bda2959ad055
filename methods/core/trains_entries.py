"""Base of methods that train single entries of the backbone's parameters."""

from typing import Any

from torch import Tensor, nn

from backbones.anatomy import replaceable
from backbones.inject import Backbone
from lightning_modules.optim.decay import decay_groups
from methods.core.selective import Selective
from methods.layers.sparse import Entries, merge_entries, train_entries


class TrainsEntries(Selective):
    """A method that trains chosen entries of the backbone's parameters. All other entries are frozen."""

    scales_over_widths = False

    def score_targets(self) -> list[str]:
        """Names of all used parameters except those of the classifier and of recurrent layers."""
        names, heads = replaceable(self.backbone, self.used_names()), self.head_prefixes
        return [name for name in names if not f"backbone.{name}".startswith(heads)]

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

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        owner = self.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, Entries) and self.decayed == "matrices":
            return owner.of_matrix  # the values are a vector, whatever they belong to
        return super().decays(name, parameter)

    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups; the entries have their own learning rate."""
        own = {id(e.values) for e in self.entries()}
        groups = super().param_groups()
        groups = [{**group, "params": [p for p in group["params"] if id(p) not in own]} for group in groups]
        entries = {name: p for name, p in self.named_parameters() if id(p) in own}
        groups += [group | {"lr": self.entries_lr} for group in decay_groups(entries, self.weight_decay, self.decays)]
        return [group for group in groups if group["params"]]
