"""CIFAR-100 from the archive of its authors (Krizhevsky, 2009)."""

import io
from typing import Any

import torch
from numpy import ndarray
from PIL import Image
from torchvision import datasets

from datamodules.benchmark import TrainTest
from datamodules.samples import LabelledSamples
from datamodules.transforms import Resize


class CIFAR100(TrainTest):
    """CIFAR-100 from ``cifar-100-python/``, whose pickles are opened only if they are the published ones, by MD5.

    For parquet files there is ``configs/data/cifar100.yaml``.

    Args:
        root: Folder of ``cifar-100-python/``, or that folder.
        resize: ``direct`` squashes to the square and loses nothing, because the images are squares; ``center_crop`` and
            ``square_crop`` resize to a larger square and crop its centre.
    """

    num_classes = 100

    def __init__(self, root: str, resize: Resize = "direct", **kwargs: Any) -> None:
        super().__init__(root, resize=resize, **kwargs)

    @property
    def class_names(self) -> list[str]:
        return list(self.part("test").classes)

    @property
    def published_sizes(self) -> dict[str, int | None]:
        return {"train": 50_000, "test": 10_000}

    def part(self, name: str) -> datasets.CIFAR100:
        """Training or test images, as torchvision reads them."""
        home = self.home.parent if self.home.name == datasets.CIFAR100.base_folder else self.home
        try:
            return datasets.CIFAR100(home, train=name == "train")
        except RuntimeError as error:
            raise ValueError(
                f"{home} has no {datasets.CIFAR100.base_folder}/ with the published files train, test and meta; "
                "other pickles are not opened, since they could run any code"
            ) from error

    def samples_of(self, name: str) -> "Arrays":
        part = self.part(name)
        return Arrays(part.data, torch.tensor(part.targets), name)


class Arrays(LabelledSamples):
    """Samples that are arrays of pixels.

    Args:
        pixels: uint8 pixels (N, H, W, 3).
        labels: Class of each (N,).
        place: Name of the list in messages.
    """

    def __init__(self, pixels: ndarray, labels: torch.Tensor, place: str) -> None:
        self.pixels = pixels
        self.labels = labels
        self.place = place

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def content(self, index: int) -> bytes:
        buffer = io.BytesIO()
        self.open(index).save(buffer, format="PNG", compress_level=1)
        return buffer.getvalue()

    def name(self, index: int) -> str:
        return f"{self.place} image {index}"

    def keep(self, indices: list[int]) -> "Arrays":
        return Arrays(self.pixels[indices], self.labels[indices], self.place)
