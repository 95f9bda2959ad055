"""Parts of a trainer that have no type in Lightning."""

from typing import Any

from lightning import Callback, Trainer


def datamodule_of(trainer: Trainer) -> Any:
    """Datamodule of the run; None if the trainer got loaders instead."""
    return getattr(trainer, "datamodule", None)


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Callbacks of the run."""
    return trainer.callbacks  # type: ignore[attr-defined]


def writes_files(trainer: Trainer) -> bool:
    """Whether this process writes files of the run: the first process, unless the run is ``fast_dev_run``."""
    return trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]
