"""Parts of a trainer that Lightning leaves without a type."""

from typing import Any

from lightning import Callback, Trainer


def datamodule_of(trainer: Trainer) -> Any:
    """The datamodule of the run, None where loaders were given instead."""
    return getattr(trainer, "datamodule", None)


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """The callbacks of the run."""
    return trainer.callbacks  # type: ignore[attr-defined]
