"""Samples as stored: what a split consists of before anything is resized, drawn or batched."""

import stat
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

MAX_ASPECT = 100  # a 20,000 x 10 image would become gigabytes when its short side is resized
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")


class Samples(ABC):
    """Samples of one split, read one by one."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Any:
        """Sample as stored, the argument of ``DataModule.item``. Raises ``OSError`` if it cannot be read."""

    @abstractmethod
    def target(self, index: int) -> Any:
        """Target of a sample as stored, without a look at its inputs."""

    @abstractmethod
    def stored(self, index: int) -> bytes:
        """All bytes of a sample, with those of its target; fingerprints are made of them."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Name of a sample in messages: its file, or its row."""

    @abstractmethod
    def keep(self, indices: list[int]) -> "Samples":
        """These samples alone."""


class ImageSample(NamedTuple):
    """Image as stored, of any mode and size, and its target."""

    image: Image.Image
    target: Any


class ImageSamples(Samples):
    """Samples whose inputs are images."""

    @abstractmethod
    def open(self, index: int) -> Image.Image:
        """Image as stored, of which only the header is read. Raises ``OSError`` if there is none."""

    @abstractmethod
    def content(self, index: int) -> bytes:
        """Encoded image."""

    @abstractmethod
    def keep(self, indices: list[int]) -> "ImageSamples": ...

    def __getitem__(self, index: int) -> ImageSample:
        return ImageSample(self.open(index), self.target(index))

    def stored(self, index: int) -> bytes:
        content = self.content(index)
        return f"{self.target(index)} {len(content)} ".encode() + content


class Labelled(Samples):
    """Samples of classes; ``labels`` (N,) holds the number of each one's class."""

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def target(self, index: int) -> int:
        return int(self.labels[index])


class LabelledSamples(Labelled, ImageSamples):
    """Images of classes."""

    @abstractmethod
    def keep(self, indices: list[int]) -> "LabelledSamples": ...


def upright(image: Image.Image, mode: str = "RGB") -> Image.Image:
    """Upright image in a mode of Pillow, from any mode: grey, palette, alpha, CMYK, 16 bit."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bit: PIL would clip at 255 instead of scaling
        image = image.point(lambda value: value * (1 / 256)).convert("L")
    if image.mode in ("P", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)


def regular(path: str | Path) -> Path:
    """Path of a file that can be read to its end.

    Raises:
        OSError: If there is none, or a pipe, a socket or a device, whose reader would wait for ever.
    """
    path = Path(path)
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(f"{path} is no regular file")
    return path


def open_image(file: Any) -> Image.Image:
    """Open an image.

    Args:
        file: Path, or file of bytes.

    Raises:
        OSError: If it is no regular file or holds no image, a decompression bomb, or sides whose ratio is above
            ``MAX_ASPECT``.
    """
    if isinstance(file, str | Path):
        file = regular(file)
    try:
        image = Image.open(file)
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise OSError(str(error)) from error
    width, height = image.size
    if max(width, height) > MAX_ASPECT * min(width, height):
        image.close()
        raise OSError(f"{width} x {height} pixels: expected sides within a factor of {MAX_ASPECT}")
    return image


Kept = TypeVar("Kept", bound=Samples)


def leave_out(split: str, samples: Kept, broken: dict[int, str], most: float | None, kind: str = "image") -> Kept:
    """Samples without those that cannot be read.

    Args:
        split: Name of the split, for messages.
        samples: All samples.
        broken: Reasons by index.
        most: Largest share of the samples that may be left out; None to refuse any.
        kind: Name of one sample in messages.

    Raises:
        ValueError: If there are too many, with the first of them.
    """
    if not broken:
        return samples
    total, first = len(samples), next(iter(broken))
    message = f"{split}: {len(broken)} of {total} {kind}s cannot be read, first {samples.name(first)}"
    if most is None:
        raise ValueError(f"{message} ({broken[first]}). Repair it, or pass --data.on_corrupt skip")
    if len(broken) > most * total:
        raise ValueError(f"{message}: more than --data.max_corrupt {most:.0%} of the split")
    print(f"note: {message}; left out")
    return cast(Kept, samples.keep([index for index in range(total) if index not in broken]))
