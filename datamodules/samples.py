"""Labelled images: opened safely, as datasets in RAM, on disk or as features, and in the order of an epoch."""

from typing import Any, Protocol

from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from datamodules.loading import collate
from lightning_modules.batch import Batch, Features

MAX_ASPECT = 100  # a 20,000 x 10 image would become gigabytes when its short side is resized
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")


class Samples(Protocol):
    """Labelled images that can be opened one by one."""

    labels: Tensor

    def open(self, index: int) -> Image.Image:
        """The image as stored; raises ``OSError`` if it cannot be read."""

    def content(self, index: int) -> bytes:
        """The encoded image."""

    def name(self, index: int) -> str:
        """What a message calls this sample: its file, or its row."""

    def keep(self, indices: list[int]) -> "Samples":
        """Only these samples."""


class CachedImages(Dataset[tuple[Tensor, int]]):
    """Samples whose resized images (N, 3, S, S) are in RAM."""

    def __init__(self, samples: Samples, pixels: Tensor, augment: v2.Transform | None) -> None:
        self.samples, self.pixels, self.augment = samples, pixels, augment

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.pixels[index]
        return image if self.augment is None else self.augment(image), int(self.samples.labels[index])


class LiveImages(Dataset[tuple[Tensor, int]]):
    """Images that are read, decoded and transformed at every access."""

    def __init__(self, samples: Samples, transform: Any) -> None:
        self.samples, self.transform = samples, transform

    def __len__(self) -> int:
        return len(self.samples.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            return self.transform(to_rgb(self.samples.open(index))), int(self.samples.labels[index])
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.samples.name(index)} cannot be read: {error}") from error


class FrozenFeatures(Dataset[tuple[int, int]]):
    """What a frozen backbone says of every sample; ``callbacks.feature_cache`` fills ``tensors``, each of N rows.

    Args:
        plain: The images.
        widen: Whether features were rounded and become fp32 again.
    """

    def __init__(self, plain: Any, widen: bool = False) -> None:
        self.plain, self.samples, self.widen = plain, plain.samples, widen
        self.tensors: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.plain)

    def __getitem__(self, index: int) -> tuple[int, int]:
        return index, int(self.samples.labels[index])

    def gather(self, items: list[Any]) -> Batch:
        """Batch of features."""
        indices, labels, valid = collate(items)
        features = (tensor[indices.to(tensor.device)] for tensor in self.tensors)
        return Batch(Features(tuple(f.float() if self.widen else f for f in features)), labels, valid)


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright RGB from any mode: grey, palette, alpha, CMYK, 16 bit."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bit: PIL would clip at 255 instead of scaling
        image = image.point(lambda value: value * (1 / 256)).convert("L")
    if image.mode in ("P", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def open_image(file: Any) -> Image.Image:
    """Open an image, calling everything that is not one, or too long a one, an ``OSError``."""
    try:
        image = Image.open(file)
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise OSError(str(error)) from error
    width, height = image.size
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise OSError(f"{width} x {height} pixels: expected sides within a factor of {MAX_ASPECT}")
    return image
