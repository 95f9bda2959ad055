"""Tasks whose outputs are classes with names, which a checkpoint shares with its data."""

from typing import Any

from lightning_modules.run import datamodule_of
from lightning_modules.task import Task


class NamedClasses(Task):
    """A task whose classes have names, in the order of its outputs."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.class_names: list[str] = []

    def setup(self, stage: str) -> None:
        super().setup(stage)
        names = list(getattr(datamodule_of(self.trainer), "class_names", []))
        if stage != "fit":  # here, because an adapter folder is loaded before the data
            check_classes(names, self.class_names)
        self.class_names = names

    def identity(self) -> dict[str, Any]:
        return {"class_names": self.class_names}

    def adopt(self, identity: dict[str, Any]) -> None:
        trained = identity.get("class_names") or []
        if not isinstance(trained, list):
            raise ValueError(f"the checkpoint has the class names {str(trained)[:60]!r}; expected a list")
        check_classes(self.class_names, trained)
        self.class_names = trained


def check_classes(here: list[str], there: list[str]) -> None:
    """Refuse data with other classes, or another order of classes, than the checkpoint.

    Args:
        here: Names of the classes of the data.
        there: Names of the classes of the checkpoint.

    Raises:
        ValueError: If both lists have names and differ, with both lists.
    """
    if here and there and here != there:
        ours, theirs = (", ".join(map(str, names[:10]))[:300] for names in (here, there))
        raise ValueError(
            f"the data have other classes than the checkpoint: {ours} in the data, {theirs} in the checkpoint"
        )
