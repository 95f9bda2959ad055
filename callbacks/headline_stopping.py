"""Early stopping by the metric by which a task is judged."""

from typing import cast

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from lightning_modules.run import datamodule_of
from lightning_modules.task import Task


class HeadlineStopping(EarlyStopping):
    """Stops a fit after some validations without a better headline metric, in its direction.

    Args:
        patience: Number of validations without a better value, after which the fit stops.
        min_delta: Smallest change that counts as better, in the unit of the metric: 0.001 is 0.1 % of accuracy.
    """

    def __init__(self, patience: int = 10, min_delta: float = 0.0) -> None:
        super().__init__("headline", min_delta, patience)
        self.change = min_delta

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        headline = cast(Task, pl_module).headline
        if stage == "fit" and getattr(datamodule_of(trainer), "validates", True) is False:
            raise ValueError(
                f"early stopping needs val/{headline.name}, and these data have no validation split: leave it out, or "
                "give one, such as --data.split tune or --data.val_fraction 0.1"
            )
        # here, because a callback is built without the task
        super().__init__(f"val/{headline.name}", self.change, self.patience, mode=headline.mode)
        super().setup(trainer, pl_module, stage)
