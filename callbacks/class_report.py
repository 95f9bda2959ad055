"""Report about the classes of a test: scores of each class, the confusion matrix, and calibrated probabilities."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_auroc, multiclass_calibration_error

from callbacks.predictions import as_text
from checkpoints.atomic import write_atomically
from lightning_modules.batch import Batch
from lightning_modules.classification import Classification
from lightning_modules.run import datamodule_of

BINS = 15  # of the calibration error, as in Guo et al.
SEARCHED = 5.0  # largest logarithm of a temperature
MOST_NAMES = 40  # classes with a name in the picture


class Kept(NamedTuple):
    """Outputs of many images.

    Args:
        logits: Logits (N, K), fp32.
        labels: Classes (N,).
    """

    logits: Tensor
    labels: Tensor


class ClassReport(Callback):
    """Writes ``classes.csv``, ``confusion.csv`` and ``confusion.png`` after a test, and logs F1, AUROC and ECE.

    ECE is the expected calibration error of the probabilities. Validation images, if there are any, choose a
    temperature that divides all logits (Guo et al., ICML 2017, arXiv:1706.04599), and ``test/ECE_calibrated`` is the
    error with it.
    """

    def __init__(self) -> None:
        self.temperature: float | None = None
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def check(self, model: Any) -> None:
        """Refuse a task whose images have no classes.

        Raises:
            ValueError: With the task.
        """
        if not isinstance(model, Classification):
            raise ValueError(f"class_report=true: {type(model).__name__} has no classes of images; leave it out")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.parts, self.temperature = [], None
        data = datamodule_of(trainer)
        if data is None or getattr(data, "report_best_test", False) or data.samples("val") is None:
            return  # also if validation images are the test images, which may choose nothing
        if "val" not in data.splits:
            data.setup("validate")
        with torch.inference_mode(), trainer.precision_plugin.test_step_context():
            for batch in on_device(data, data.val_dataloader(), pl_module.device):
                self.keep(cast(Classification, pl_module), cast(Classification, pl_module).evaluate(batch), batch)
        self.temperature = fit_temperature(self.taken(pl_module))

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.keep(cast(Classification, pl_module), outputs["outputs"], batch)

    def keep(self, task: Classification, outputs: Tensor, batch: Batch) -> None:
        """Keep the logits of a batch in host memory."""
        self.parts.append((task.masked(outputs.float()).cpu(), batch.targets.cpu(), batch.valid.cpu()))

    def taken(self, pl_module: LightningModule) -> Kept:
        """Outputs of all ranks that were kept since the last call, without padding samples."""
        own = [torch.cat(part).to(pl_module.device) for part in zip(*self.parts, strict=True)]
        self.parts = []
        # all ranks have equally many, because loaders pad them
        every = [cast(Tensor, pl_module.all_gather(part)).reshape(-1, *part.shape[1:]).cpu() for part in own]
        logits, labels, valid = every
        return Kept(logits[valid.bool()], labels[valid.bool()])

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        kept, names = self.taken(pl_module), cast(Classification, pl_module).class_names
        names = names or [str(number) for number in range(kept.logits.shape[1])]
        table = class_table(kept)
        scores = {name: float(table[name].nanmean()) for name in ("F1", "AUROC")}
        scores["ECE"] = calibration_error(kept)
        if self.temperature is not None:
            calibrated = calibration_error(kept._replace(logits=kept.logits / self.temperature))
            scores |= {"temperature": self.temperature, "ECE_calibrated": calibrated}
        pl_module.log_dict({f"test/{name}": score for name, score in scores.items()})
        folder = Path(str(trainer.log_dir or trainer.default_root_dir))  # on all ranks, which agree on it
        if trainer.is_global_zero:
            write_classes(folder / "classes.csv", table, names)
            counts = confusion(kept)
            write_confusion(folder / "confusion.csv", counts, names)
            draw_confusion(folder / "confusion.png", counts, names)


def on_device(data: Any, loader: Any, device: torch.device) -> Iterator[Batch]:
    """Batches of a loader as the model reads them."""
    for batch in loader:
        yield data.on_after_batch_transfer(data.transfer_batch_to_device(batch, device, 0), 0)


def fit_temperature(kept: Kept) -> float:
    """Temperature T at which softmax(logits / T) has the smallest mean cross entropy with the labels."""
    # a test runs in inference mode, whose tensors cannot be saved for a backward pass
    with torch.inference_mode(False), torch.enable_grad():
        logits, labels = kept.logits.double().clone(), kept.labels.clone()
        log_temperature = torch.zeros((), dtype=torch.double, requires_grad=True)
        optimizer = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

        def loss() -> float:
            optimizer.zero_grad()
            value = F.cross_entropy(logits / log_temperature.exp(), labels)
            value.backward()
            return float(value.detach())

        optimizer.step(loss)
    # without a wrong answer the best temperature is 0
    return float(log_temperature.detach().clamp(-SEARCHED, SEARCHED).exp())


def calibration_error(kept: Kept) -> float:
    """Expected calibration error of the most probable class, in 15 bins of its probability."""
    shares = kept.logits.softmax(1)
    return float(multiclass_calibration_error(shares, kept.labels, shares.shape[1], BINS, "l1", validate_args=False))


def confusion(kept: Kept) -> Tensor:
    """Number of images of class i that are predicted as j, (K, K)."""
    classes = kept.logits.shape[1]
    return (kept.labels * classes + kept.logits.argmax(1)).bincount(minlength=classes**2).view(classes, classes)


def class_table(kept: Kept) -> dict[str, Tensor]:
    """Scores of each class (K,); not a number where a class has no image, or for F1 no image and no prediction."""
    counts = confusion(kept).double()
    hits, images, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    shares = kept.logits.softmax(1)
    areas = [
        float(binary_auroc(shares[:, k], kept.labels == k, validate_args=False))
        if 0 < images[k] < len(kept.labels)
        else torch.nan
        for k in range(len(images))
    ]
    return {
        "images": images,
        "accuracy": hits / images,
        "precision": hits / predicted,
        "F1": 2 * hits / (images + predicted),
        "AUROC": torch.tensor(areas, dtype=torch.double),
    }


def write_classes(path: Path, table: dict[str, Tensor], names: list[str]) -> None:
    """Write a line for each class; cells without a number are empty."""
    rows = [["class", *table]]
    for number, name in enumerate(names):
        values = [float(column[number]) for column in table.values()]
        cells = [f"{value:.6g}" if value == value else "" for value in values]
        rows.append([as_text(name), *cells])
    write_rows(path, rows)


def write_confusion(path: Path, counts: Tensor, names: list[str]) -> None:
    """Write the counts (K, K): a line for each true class, a column for each predicted one."""
    texts = [as_text(name) for name in names]
    lines = [[name, *map(str, row)] for name, row in zip(texts, counts.tolist(), strict=True)]
    write_rows(path, [["true / predicted", *texts], *lines])


def write_rows(path: Path, rows: list[list[str]]) -> None:
    def write(file: Path) -> None:
        with file.open("w", newline="") as stream:
            csv.writer(stream).writerows(rows)

    write_atomically(path, write)


def draw_confusion(path: Path, counts: Tensor, names: list[str]) -> None:
    """Draw the share of the images of each true class (row) that is predicted as each class (column)."""
    from matplotlib.figure import Figure

    shares = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    side = 3 + 0.25 * min(len(names), MOST_NAMES)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    if len(names) <= MOST_NAMES:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
    figure.colorbar(shown, label="share of the true class")
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=100))
