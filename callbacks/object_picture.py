"""Picture of validation images with their objects and the predicted ones."""

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from backbones.evaluating import evaluating
from callbacks.object_predictions import CERTAIN, drawn
from checkpoints.atomic import write_atomically
from datamodules.samples import upright
from lightning_modules.run import datamodule_of
from lightning_modules.task import Task

IMAGES = 6  # validation images in the picture


class ObjectPicture(Callback):
    """Draws ``validation.png`` at the end of a fit: validation images with their objects and the predicted ones.

    A run with a logger of Weights & Biases logs the picture as ``val/picture``.
    """

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data, folder = datamodule_of(trainer), Path(str(trainer.log_dir or trainer.default_root_dir))
        if "val" not in data.splits:
            return
        assert isinstance(pl_module, Task)
        columns = [predicted(data, pl_module, index) for index in range(min(len(data.splits["val"]), IMAGES))]
        if not trainer.is_global_zero:  # all ranks predict, because shards of weights are gathered from all
            return
        picture = folder / "validation.png"
        draw(columns, picture)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("val/picture", [str(picture)])


def predicted(data: Any, task: Task, index: int) -> tuple[Tensor, Tensor]:
    """Pictures (3, H, W) of a validation image with its objects, and with those that are predicted with certainty."""
    dataset = data.splits["val"]
    with evaluating(task), torch.no_grad():
        batch = data.transfer_batch_to_device(data.collate([dataset[index]]), task.device, 0)
        batch = data.on_after_batch_transfer(batch, 0)
        found = task.predictions(task.infer(batch))[0]
    with dataset.samples.open(index) as image:
        pixels = vision.pil_to_tensor(upright(image))
    certain = {name: value[found["scores"] >= CERTAIN] for name, value in found.items()}
    truth = {name: batch.targets[0][name].cpu() for name in ("boxes", "labels", "masks") if name in batch.targets[0]}
    return drawn(pixels, truth, data.class_names), drawn(pixels, certain, data.class_names)


def draw(columns: list[tuple[Tensor, Tensor]], path: Path) -> None:
    """Draw the pictures of objects above those of predictions, a column for each image."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(columns), 6), layout="constrained")
    axes = figure.subplots(2, len(columns), squeeze=False)
    for column, parts in enumerate(columns):
        for row, (title, part) in enumerate(zip(("truth", "prediction"), parts, strict=True)):
            axes[row, column].imshow(part.permute(1, 2, 0).numpy())
            axes[row, column].set(xticks=[], yticks=[], ylabel="" if column else title)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=100))
