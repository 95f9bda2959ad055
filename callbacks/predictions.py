"""Table of the predictions of a checkpoint, and file of its embeddings."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch.distributed
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from safetensors.torch import save_file
from torch import Tensor

from checkpoints.atomic import write_atomically
from lightning_modules.run import datamodule_of
from lightning_modules.task import Task

KINDS = (".safetensors", ".parquet")


class Row(NamedTuple):
    """Prediction for an image.

    Args:
        number: Number of the image.
        classes: Its most probable classes; all tags or numbers, in their order.
        values: Their probabilities; the predicted numbers.
        embedding: Input of its classifier, if that is kept.
    """

    number: int
    classes: list[int]
    values: list[float]
    embedding: Tensor | None = None


class Predictions(BasePredictionWriter):
    """Writes ``predictions.csv`` into the run folder after ``predict``, a line for each image.

    Of a class: index, sample, class, probability. Of tags: a column with the probability of each tag. Of numbers: a
    column for each number.

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
        labels, names = cast(Task, pl_module).targets == "labels", output_names(trainer, pl_module)
        if self.top_k > 1 and not labels:
            raise ValueError(f"top_k={self.top_k}: {type(pl_module).__name__} predicts all of {', '.join(names[:5])}")
        if self.top_k > len(names):
            raise ValueError(f"top_k={self.top_k}: the model has {len(names)} classes")
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
        targets = cast(Task, pl_module).targets
        rows = self.rows(predictions, batch_indices[0], self.top_k if targets == "labels" else None)
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, rows)
            rows = [row for part in gathered for row in part]
        rows.sort(key=lambda row: row.number)
        folder = Path(str(trainer.log_dir))
        if trainer.is_global_zero:
            names = [as_text(name) for name in output_names(trainer, pl_module)]
            samples = datamodule_of(trainer).splits["test"].samples
            files = [samples.name(row.number) for row in rows]
            header = best_columns(self.top_k) if targets == "labels" else names
            cells = [cells_of(row, names, targets) for row in rows]
            write_atomically(folder / "predictions.csv", lambda path: write_table(path, header, rows, files, cells))
            print(f"{len(rows)} predictions in {folder / 'predictions.csv'}")
            if self.file is not None:
                write_atomically(self.file, lambda path: write_embeddings(path, self.file, rows, files, names))
                print(f"{len(rows)} embeddings in {self.file}")

    def rows(self, predictions: Sequence[Tensor], indices: Sequence[Sequence[int]], best: int | None) -> list[Row]:
        """Rows of the batches of this rank, with the ``best`` most probable classes, or all outputs in their order."""
        if self.file is not None and sum(map(len, self.kept)) != sum(map(len, predictions)):
            raise ValueError("embeddings: the model does not call its classifier once for each image")
        vectors = torch.cat(self.kept) if self.file is not None else None
        found: list[Row] = []
        for values, batch in zip(predictions, indices, strict=True):
            classes = torch.arange(values.shape[1]).expand_as(values)
            if best is not None:
                # a stable sort and not topk, because topk takes any of equal classes
                values, classes = values.sort(dim=1, descending=True, stable=True)
            for index, own, kept in zip(batch, classes[:, :best].tolist(), values[:, :best].tolist(), strict=True):
                found.append(Row(index, own, kept, None if vectors is None else vectors[len(found)]))
        return found


def output_names(trainer: Trainer, pl_module: LightningModule) -> list[str]:
    """Names of the outputs of a model: classes, tags or numbers."""
    data = datamodule_of(trainer)
    return list(data.target_names if cast(Task, pl_module).targets == "numbers" else data.class_names)


def best_columns(top_k: int) -> list[str]:
    """Columns of the ``top_k`` most probable classes."""
    ends = ["", *(f"_{place}" for place in range(2, top_k + 1))]
    return [f"{column}{end}" for end in ends for column in ("class", "probability")]


def cells_of(row: Row, names: Sequence[str], targets: str) -> list[str]:
    """Cells of a row behind its number and the name of its file."""
    if targets == "labels":
        pairs = zip(row.classes, row.values, strict=True)
        return [cell for label, share in pairs for cell in (names[label], f"{share:.6f}")]
    return [f"{value:.7g}" if targets == "numbers" else f"{value:.6f}" for value in row.values]


def write_table(
    path: Path, header: Sequence[str], rows: Sequence[Row], files: Sequence[str], cells: Sequence[Sequence[str]]
) -> None:
    """Write rows as CSV, with the name of the file of each."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "sample", *header])
        for row, name, own in zip(rows, files, cells, strict=True):
            writer.writerow([row.number, as_text(name), *own])


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
