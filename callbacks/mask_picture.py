"""Picture of validation images with their masks and predictions."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from backbones.evaluating import evaluating
from callbacks.mask_predictions import coloured
from checkpoints.atomic import write_atomically
from datamodules.palette import palette
from lightning_modules.run import datamodule_of
from lightning_modules.task import Task

IMAGES = 8  # validation images in the picture
NAMES = 30  # classes in the legend, at most


class MaskPicture(Callback):
    """Draws ``validation.png`` at the end of a fit: eight validation images, their masks and predictions.

    A run with a logger of Weights & Biases logs the picture as ``val/picture``.
    """

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data, folder = datamodule_of(trainer), Path(str(trainer.log_dir or trainer.default_root_dir))
        dataset = data.replaced.get("val", data.splits.get("val"))  # the images, where a cache reads their features
        if dataset is None:
            return
        assert isinstance(pl_module, Task)
        rows = [predicted(data, pl_module, dataset[index]) for index in range(min(len(dataset), IMAGES))]
        if not trainer.is_global_zero:  # all ranks predict, because shards of weights are gathered from all
            return
        picture = folder / "validation.png"
        draw(rows, data.class_names, picture)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("val/picture", [str(picture)])


def predicted(data: Any, task: Task, item: tuple[Any, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels (h, w, 3) of an image, its labels (H, W) and the predicted classes (H, W), all uint8."""
    with evaluating(task), torch.no_grad():
        batch = data.transfer_batch_to_device(data.collate([item]), task.device, 0)
        classes = task.predictions(task.infer(data.on_after_batch_transfer(batch, 0)))[0]
    return item[0].permute(1, 2, 0).numpy(), item[1].to(torch.uint8).numpy(), classes.cpu().numpy()


def draw(rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]], names: list[str], path: Path) -> None:
    """Draw images, labels and predictions side by side, with the colours of the classes that are in them.

    Args:
        rows: Pixels, labels and predictions of each image.
        names: Name of each class.
        path: PNG file.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(2 * len(rows) + 2, 6), layout="constrained")
    axes = figure.subplots(3, len(rows), squeeze=False)
    for column, parts in enumerate(rows):
        for row, (title, part) in enumerate(zip(("image", "truth", "prediction"), parts, strict=True)):
            axes[row, column].imshow(coloured(part).convert("RGB") if row else part)
            axes[row, column].set(xticks=[], yticks=[], ylabel="" if column else title)
    colours = np.array(palette()).reshape(-1, 3) / 255
    found = sorted({int(number) for _, labels, classes in rows for number in np.union1d(labels, classes)})
    patches = [Patch(color=colours[n], label=names[n]) for n in found if n < len(names)]
    figure.legend(handles=patches[:NAMES], loc="outside right center", frameon=False)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=100))
