"""Boxes and masks of the predictions of a checkpoint."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as vision
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from checkpoints.atomic import write_atomically
from datamodules.objects import ObjectSamples
from datamodules.palette import palette
from datamodules.samples import upright
from lightning_modules.average_precision import mask_library
from lightning_modules.batch import Batch
from lightning_modules.run import datamodule_of

CERTAIN = 0.3  # score from which an object is drawn
SIDE = 320  # short side in pixels to which a smaller image is enlarged before it is drawn on


class ObjectPredictions(BasePredictionWriter):
    """Writes ``predictions.json`` in COCO's form of results after ``predict``, and a picture of each image.

    The file has every object; ``pictures/NAME.jpg`` shows those with a score of at least 0.3.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")
        self.entries: list[dict[str, Any]] = []

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: list[dict[str, Tensor]],
        batch_indices: Sequence[int] | None,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        data, folder = datamodule_of(trainer), Path(str(trainer.log_dir)) / "pictures"
        samples = cast(ObjectSamples, data.splits["test"].samples)
        folder.mkdir(exist_ok=True)
        assert batch_indices is not None
        for found, index in zip(prediction, batch_indices, strict=True):
            self.entries += results(found, samples.image_id(index), data.category_ids)
            with samples.open(index) as image:
                pixels = vision.pil_to_tensor(upright(image))
            certain = {name: value[found["scores"] >= CERTAIN] for name, value in found.items()}
            picture = Image.fromarray(drawn(pixels, certain, data.class_names).permute(1, 2, 0).numpy())
            path = folder / f"{Path(samples.name(index)).stem}.jpg"
            write_atomically(path, partial(picture.save, format="JPEG"))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parts: list[Any] = [self.entries]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, self.entries)
        if trainer.is_global_zero:
            entries = [entry for part in parts for entry in part]
            path = Path(str(trainer.log_dir)) / "predictions.json"
            text = json.dumps(sorted(entries, key=lambda entry: str(entry["image_id"])))
            write_atomically(path, lambda file: file.write_text(text), lambda: len(text))
            print(f"{len(entries)} objects in {path}, pictures in {path.parent / 'pictures'}")


def results(found: dict[str, Tensor], image_id: Any, category_ids: list[int]) -> list[dict[str, Any]]:
    """Entries of COCO's form of results for the objects of an image.

    Args:
        found: ``boxes`` (n, 4), ``labels`` (n,) from 1, ``scores`` (n,) and, if there are any, ``masks`` (n, H, W).
        image_id: Number or name of the image.
        category_ids: Number of each class in the annotations.
    """
    boxes = torch.cat([found["boxes"][:, :2], found["boxes"][:, 2:] - found["boxes"][:, :2]], dim=1)
    entries = [
        {
            "image_id": image_id,
            "category_id": category_ids[label - 1],
            "bbox": [round(value, 3) for value in box],
            "score": round(score, 6),
        }
        for label, box, score in zip(found["labels"].tolist(), boxes.tolist(), found["scores"].tolist(), strict=True)
    ]
    if entries and "masks" in found:
        masks = np.asfortranarray(found["masks"].permute(1, 2, 0).numpy().astype(np.uint8))
        for entry, runs in zip(entries, mask_library().encode(masks), strict=True):
            counts = runs["counts"]
            size = [int(side) for side in runs["size"]]
            entry["segmentation"] = {"size": size, "counts": counts if isinstance(counts, str) else counts.decode()}
    return entries


def drawn(pixels: Tensor, found: dict[str, Any], names: list[str]) -> Tensor:
    """Picture (3, H, W), uint8, of an image with its objects; a small image is enlarged.

    Args:
        pixels: uint8 pixels (3, h, w) of the image.
        found: Its objects, in these pixels; see ``results``. They need no scores.
        names: Name of each class from 1.
    """
    factor = -(-SIDE // min(*pixels.shape[1:], SIDE))
    pixels = pixels.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    labels = found["labels"].tolist()
    if not labels:
        return pixels
    colours = torch.tensor(palette()).view(-1, 3).tolist()
    own: Any = [tuple(colours[label % len(colours)]) for label in labels]
    if "masks" in found:
        masks = found["masks"].bool().repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        pixels = draw_segmentation_masks(pixels, masks, alpha=0.5, colors=own)
    scores = found["scores"].tolist() if "scores" in found else [None] * len(labels)
    texts = [names[n - 1] + ("" if s is None else f" {s:.2f}") for n, s in zip(labels, scores, strict=True)]
    return draw_bounding_boxes(pixels, factor * found["boxes"], texts, colors=own, width=2)
