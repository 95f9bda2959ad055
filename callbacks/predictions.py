"""Table of the predictions of a checkpoint, and file of its embeddings."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from safetensors.torch import save_file
from torch import Tensor

from checkpoints.atomic import write_atomically
from lightning_modules.run import datamodule_of

KINDS = (".safetensors", ".parquet")


class Row(NamedTuple):
    """Prediction for an image: its number, its most probable classes with their probabilities, and its embedding."""

    number: int
    classes: list[int]
    probabilities: list[float]
    embedding: Tensor | None = None


class Predictions(BasePredictionWriter):
    """Writes ``predictions.csv`` (index, sample, class, probability) into the run folder after ``predict``.

    Args:
        top_k: Number of classes of an image; those after the first have the columns class_2, probability_2, ...
        embeddings: New file for the inputs of the classifier; none by default.

    Raises:
        ValueError: If there is no class, or the file is of another kind.
        FileExistsError: If the file exists.
    """

    def __init__(self, top_k: int = 1, embeddings: str | None = None) -> None:
        super().__init__(write_interval="epoch")
        if top_k < 1:
            raise ValueError(f"top_k={top_k}: expected at least 1 class")
        self.top_k, self.file = top_k, None if embeddings is None else Path(embeddings)
        if self.file is not None and self.file.suffix not in KINDS:
            raise ValueError(f"embeddings={embeddings!r}: expected a file NAME{' or NAME'.join(KINDS)}")
        if self.file is not None and self.file.exists():
            raise FileExistsError(f"embeddings={embeddings!r} exists; nothing was predicted")
        self.kept: list[Tensor] = []
        self.predicts = False  # whether the running pass is that of a prediction, and not of a picture that explains it
        self.handle: Any = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        classes = len(datamodule_of(trainer).class_names)
        if self.top_k > classes:
            raise ValueError(f"top_k={self.top_k}: the model has {classes} classes")
        if self.file is not None:
            layer = pl_module.embedding_layer()  # type: ignore[operator]
            self.handle = layer.register_forward_pre_hook(self.keep)

    def keep(self, module: Any, args: tuple[Tensor, ...]) -> None:
        if self.predicts:
            self.kept.append(args[0].detach().flatten(1).float().cpu())

    def on_predict_batch_start(self, *args: Any, **options: Any) -> None:
        self.predicts = True

    def on_predict_batch_end(self, *args: Any, **options: Any) -> None:
        self.predicts = False
        super().on_predict_batch_end(*args, **options)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.handle is not None:
            self.handle.remove()

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        rows = self.rows(predictions, batch_indices[0])
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, rows)
            rows = [row for part in gathered for row in part]
        rows.sort(key=lambda row: row.number)
        folder = Path(str(trainer.log_dir))
        if trainer.is_global_zero:
            names = [as_text(name) for name in datamodule_of(trainer).class_names]
            samples = datamodule_of(trainer).splits["test"].samples
            files = [samples.name(row.number) for row in rows]
            write_atomically(folder / "predictions.csv", lambda path: write_table(path, rows, files, names))
            print(f"{len(rows)} predictions in {folder / 'predictions.csv'}")
            if self.file is not None:
                write_atomically(self.file, lambda path: write_embeddings(path, self.file, rows, files, names))
                print(f"{len(rows)} embeddings in {self.file}")

    def rows(self, predictions: Sequence[Tensor], indices: Sequence[Sequence[int]]) -> list[Row]:
        """Rows of the batches of this rank."""
        if self.file is not None and sum(map(len, self.kept)) != sum(map(len, predictions)):
            raise ValueError("embeddings: the model does not call its classifier once for each image")
        vectors = torch.cat(self.kept) if self.file is not None else None
        found: list[Row] = []
        for probabilities, batch in zip(predictions, indices, strict=True):
            # a stable sort and not topk, because topk takes any of equal classes
            values, classes = probabilities.sort(dim=1, descending=True, stable=True)
            kept = (classes[:, : self.top_k].tolist(), values[:, : self.top_k].tolist())
            for index, own, confidence in zip(batch, *kept, strict=True):
                found.append(Row(index, own, confidence, None if vectors is None else vectors[len(found)]))
        return found


def write_table(path: Path, rows: Sequence[Row], files: Sequence[str], names: Sequence[str]) -> None:
    """Write rows as CSV, with the name of the file of each."""
    ends = ["", *(f"_{place}" for place in range(2, len(rows[0].classes) + 1))] if rows else [""]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "sample", *(f"{column}{end}" for end in ends for column in ("class", "probability"))])
        for row, name in zip(rows, files, strict=True):
            pairs = zip(row.classes, row.probabilities, strict=True)
            cells = [cell for label, share in pairs for cell in (names[label], f"{share:.6f}")]
            writer.writerow([row.number, as_text(name), *cells])


def write_embeddings(path: Path, named: Path | None, rows: list[Row], files: list[str], names: list[str]) -> None:
    """Write the embeddings of rows.

    Args:
        path: File to write.
        named: Its final name, whose end tells the kind.
        rows: The rows.
        files: Name of the file of each row.
        names: Names of the classes.
    """
    vectors = torch.stack([row.embedding for row in rows if row.embedding is not None])
    if named is not None and named.suffix == ".safetensors":
        save_file({"embeddings": vectors}, path, metadata={"samples": json.dumps(files)})
        return
    import pyarrow
    from pyarrow import parquet

    columns = {
        "sample": files,
        "class": [names[row.classes[0]] for row in rows],
        "embedding": pyarrow.array(list(vectors.numpy()), pyarrow.list_(pyarrow.float32(), vectors.shape[1])),
    }
    parquet.write_table(pyarrow.table(columns), path)


def as_text(name: str) -> str:
    """Name behind an apostrophe if a spreadsheet would run it as a formula; ``-1`` and the like are numbers."""
    formula = re.match(r"[=@\t\r]|[+-](?![\d.]+$)", name)
    return f"'{name}" if formula else name
