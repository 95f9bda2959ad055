"""Picture of validation clips with their classes and predictions."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from backbones.evaluating import evaluating
from checkpoints.atomic import write_atomically
from lightning_modules.run import datamodule_of
from lightning_modules.task import Task

CLIPS = 6  # validation clips in the picture


class Strip(NamedTuple):
    """A clip with its class and the predicted one.

    Args:
        frames: uint8 pixels (T, h, w, 3).
        truth: Number of its class.
        prediction: Number of the predicted class.
    """

    frames: np.ndarray
    truth: int
    prediction: int


class ClipPicture(Callback):
    """Draws ``validation.png`` at the end of a fit: a strip of frames for each of six validation clips.

    The clips lie evenly in the validation split. A run with a logger of Weights & Biases logs the picture as
    ``val/picture``.
    """

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data, folder = datamodule_of(trainer), Path(str(trainer.log_dir or trainer.default_root_dir))
        dataset = data.splits.get("val")
        if dataset is None:
            return
        assert isinstance(pl_module, Task)
        chosen = range(0, len(dataset), -(-len(dataset) // CLIPS))
        strips = [predicted(data, pl_module, dataset[index]) for index in chosen]
        if not trainer.is_global_zero:  # all ranks predict, because shards of weights are gathered from all
            return
        picture = folder / "validation.png"
        draw(strips, data.class_names, picture)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("val/picture", [str(picture)])


def predicted(data: Any, task: Task, item: tuple[Any, Any]) -> Strip:
    """A clip with the class that the task predicts."""
    with evaluating(task), torch.no_grad():
        batch = data.transfer_batch_to_device(data.collate([item]), task.device, 0)
        shares = task.predictions(task.infer(data.on_after_batch_transfer(batch, 0)))[0]
    return Strip(item[0].permute(0, 2, 3, 1).numpy(), int(item[1]), int(shares.argmax()))


def draw(strips: list[Strip], names: list[str], path: Path) -> None:
    """Draw one row of frames for each clip, with its class and the predicted one beside it.

    Args:
        strips: The clips.
        names: Name of each class.
        path: PNG file.
    """
    from matplotlib.figure import Figure

    longest = max(len(strip.frames) for strip in strips)
    figure = Figure(figsize=(1.1 * longest + 3, 1.3 * len(strips)), layout="constrained")
    axes = figure.subplots(len(strips), longest, squeeze=False)
    for row, strip in zip(axes, strips, strict=True):
        for axis in row:
            axis.axis("off")
        for axis, frame in zip(row, strip.frames, strict=False):
            axis.imshow(frame)
        right = strip.truth == strip.prediction
        text = f"truth: {names[strip.truth]}\nprediction: {names[strip.prediction]}"
        row[0].text(-0.15, 0.5, text, transform=row[0].transAxes, ha="right", va="center", color="k" if right else "C3")
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=100))
