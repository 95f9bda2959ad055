"""Table of the predictions of a checkpoint."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch.distributed
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from checkpoints.atomic import write_atomically
from lightning_modules.run import datamodule_of
from lightning_modules.task import Task


class Predictions(BasePredictionWriter):
    """Writes ``predictions.csv`` into the run folder after ``predict``, a line for each image.

    Of a class: index, sample, class, probability. Of tags: a column with the probability of each tag. Of numbers: a
    column for each number.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="epoch")

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        targets = cast(Task, pl_module).targets
        labels, rows = targets == "labels", list[Any]()
        for outputs, indices in zip(predictions, batch_indices[0], strict=True):
            values = outputs.tolist()
            if labels:
                confidence, classes = outputs.max(dim=1)
                values = list(zip(classes.tolist(), confidence.tolist(), strict=True))
            rows += list(zip(indices, values, strict=True))
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, rows)
            rows = [row for part in gathered for row in part]
        folder = Path(str(trainer.log_dir))
        if trainer.is_global_zero:
            data = datamodule_of(trainer)
            names = [as_text(name) for name in (data.target_names if targets == "numbers" else data.class_names)]
            samples = data.splits["test"].samples
            form = ".7g" if targets == "numbers" else ".6f"

            def write(path: Path) -> None:
                with path.open("w", newline="") as file:
                    writer = csv.writer(file)
                    writer.writerow(["index", "sample", *(["class", "probability"] if labels else names)])
                    for index, values in sorted(rows):
                        cells = [names[values[0]], f"{values[1]:.6f}"] if labels else [f"{v:{form}}" for v in values]
                        writer.writerow([index, as_text(samples.name(index)), *cells])

            write_atomically(folder / "predictions.csv", write)
            print(f"{len(rows)} predictions in {folder / 'predictions.csv'}")


def as_text(name: str) -> str:
    """Name behind an apostrophe if a spreadsheet would run it as a formula; ``-1`` and the like are numbers."""
    formula = re.match(r"[=@\t\r]|[+-](?![\d.]+$)", name)
    return f"'{name}" if formula else name
