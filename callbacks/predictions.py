"""Table of the predictions of a checkpoint."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from checkpoints.atomic import write_atomically
from lightning_modules.run import datamodule_of


class Predictions(BasePredictionWriter):
    """Writes ``predictions.csv`` (index, sample, class, probability) into the run folder after ``predict``."""

    def __init__(self) -> None:
        super().__init__(write_interval="epoch")

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        rows = []
        for probabilities, indices in zip(predictions, batch_indices[0], strict=True):
            confidence, classes = probabilities.max(dim=1)
            rows += list(zip(indices, classes.tolist(), confidence.tolist(), strict=True))
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, rows)
            rows = [row for part in gathered for row in part]
        folder = Path(str(trainer.log_dir))
        if trainer.is_global_zero:
            names = datamodule_of(trainer).class_names
            samples = datamodule_of(trainer).splits["test"].samples

            def write(path: Path) -> None:
                with path.open("w", newline="") as file:
                    writer = csv.writer(file)
                    writer.writerow(["index", "sample", "class", "probability"])
                    for index, label, confidence in sorted(rows):
                        row = [index, as_text(samples.name(index)), as_text(names[label]), f"{confidence:.6f}"]
                        writer.writerow(row)

            write_atomically(folder / "predictions.csv", write)
            print(f"{len(rows)} predictions in {folder / 'predictions.csv'}")


def as_text(name: str) -> str:
    """Name behind an apostrophe if a spreadsheet would run it as a formula; ``-1`` and the like are numbers."""
    formula = re.match(r"[=@\t\r]|[+-](?![\d.]+$)", name)
    return f"'{name}" if formula else name
