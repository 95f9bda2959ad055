"""Masks of the predictions of a checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image
from torch import Tensor

from checkpoints.atomic import write_atomically
from datamodules.masks import Pairs
from datamodules.samples import upright
from lightning_modules.batch import Batch
from lightning_modules.run import datamodule_of


class MaskPredictions(BasePredictionWriter):
    """Writes a mask of classes for each image after ``predict``, and the image below its colours.

    ``masks/NAME.png`` is a palette image of the numbers of the classes, ``overlays/NAME.jpg`` a picture to look at.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")
        self.written = 0

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Tensor,
        batch_indices: Sequence[int] | None,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        data = datamodule_of(trainer)
        samples = cast(Pairs, data.splits["test"].samples)
        folder = Path(str(trainer.log_dir))  # once a batch, because ranks may differ in their images
        assert batch_indices is not None
        for classes, index in zip(prediction.cpu().numpy(), batch_indices, strict=True):
            with samples.open(index) as image:
                write(classes, upright(image), data.palette, folder, Path(samples.name(index)).stem)
        self.written += len(batch_indices)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = Path(str(trainer.log_dir)) / "masks"  # all ranks must call log_dir
        if trainer.is_global_zero:
            print(f"{self.written * trainer.world_size} masks in {folder}")


def write(classes: np.ndarray, image: Image.Image, palette: list[int], folder: Path, name: str) -> None:
    """Write the mask of classes (H, W), uint8, and the picture of an image of the same size."""
    for kind in ("masks", "overlays"):
        (folder / kind).mkdir(exist_ok=True)
    mask = coloured(classes, palette)
    picture = Image.blend(image, mask.convert("RGB"), 0.5)
    write_atomically(folder / "masks" / f"{name}.png", lambda path: mask.save(path, format="PNG"))
    write_atomically(folder / "overlays" / f"{name}.jpg", lambda path: picture.save(path, format="JPEG"))


def coloured(classes: Any, palette: list[int]) -> Image.Image:
    """Palette image of classes (H, W), uint8.

    Args:
        classes: Number of the class of each pixel.
        palette: Red, green and blue of 256 numbers, one after the other.
    """
    mask = Image.fromarray(np.asarray(classes, np.uint8))
    mask.putpalette(palette)
    return mask
