"""Small images in memory, and a datamodule over them."""

import io
from typing import Any

import numpy as np
import torch
from PIL import Image

from datamodules.base import Split
from datamodules.labelled_images import LabelledImages
from datamodules.samples import LabelledSamples, open_image

INPUT = {
    "input_size": (3, 16, 16),
    "mean": (0.1, 0.2, 0.3),
    "std": (0.4, 0.5, 0.6),
    "interpolation": "bicubic",
    "crop_pct": 0.8,
}


class Bytes(LabelledSamples):
    """Samples that are encoded images."""

    def __init__(self, files: list[bytes], labels: list[int]) -> None:
        self.files, self.labels = files, torch.tensor(labels, dtype=torch.long)

    def open(self, index: int) -> Image.Image:
        return open_image(io.BytesIO(self.files[index]))

    def content(self, index: int) -> bytes:
        return self.files[index]

    def name(self, index: int) -> str:
        return f"image {index}"

    def keep(self, indices: list[int]) -> "Bytes":
        return Bytes([self.files[i] for i in indices], self.labels[indices].tolist())


class Listed(LabelledImages):
    """A datamodule over lists of encoded images, configured without a trainer."""

    def __init__(self, splits: dict[str, Bytes] | None = None, num_classes: int = 3, **options: Any) -> None:
        super().__init__(**options)
        self.given, self.classes = splits or {}, num_classes
        self.configure(INPUT)

    @property
    def num_classes(self) -> int:
        return self.classes

    @property
    def class_names(self) -> list[str]:
        return [str(number) for number in range(self.classes)]

    def samples(self, split: Split) -> Bytes | None:
        return self.given.get(split)


def picture(seed: int, width: int = 24, height: int = 20, mode: str = "RGB") -> Image.Image:
    channels = {"RGB": 3, "RGBA": 4, "CMYK": 4, "LA": 2}.get(mode)
    shape = (height, width, channels) if channels else (height, width)
    # neighbouring values, so that JPEG and resizing keep them
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8) // 8 + 100
    return Image.fromarray(pixels, mode if mode in ("CMYK", "LA") else None)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def pictures(count: int = 6, num_classes: int = 3) -> Bytes:
    return Bytes([encode(picture(seed)) for seed in range(count)], [seed % num_classes for seed in range(count)])
