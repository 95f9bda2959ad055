"""Trainer with a method for each subcommand."""

from typing import Any

from lightning import LightningDataModule, Trainer

from methods import PEFTMethod


class GraftTrainer(Trainer):
    """A Trainer that can stop where the fit would begin."""

    def score(self, model: PEFTMethod, datamodule: LightningDataModule, **kwargs: Any) -> None:
        """Score weights or channels, and draw the choice of the method."""
        self.limit_train_batches = self.limit_val_batches = 0
        self.fit(model, datamodule=datamodule)
