"""Trainer with a method for each subcommand."""

import warnings
from typing import Any

from lightning import LightningDataModule, Trainer

from methods import PEFTMethod


class GraftTrainer(Trainer):
    """A Trainer that can stop where the fit would begin."""

    def score(self, model: PEFTMethod, datamodule: LightningDataModule, **kwargs: Any) -> None:
        """Score weights or channels, and draw what the method would choose."""
        self.limit_train_batches = self.limit_val_batches = 0
        model.configure_optimizers = no_optimizer  # type: ignore[method-assign]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*returned `None`, this fit will run with no optimizer")
            self.fit(model, datamodule=datamodule)


def no_optimizer() -> None:
    """Replaces ``configure_optimizers`` while ``score`` runs, because nothing trains."""
