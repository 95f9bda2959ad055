"""CIFAR-100 from the archive of its authors (Krizhevsky, 2009)."""

import io
from typing import Any, Literal

import torch
from numpy import ndarray
from PIL import Image
from torchvision import datasets

from datamodules.benchmark import TrainTest


class CIFAR100(TrainTest):
    """CIFAR-100 from ``cifar-100-python/``, whose pickles are opened only if they are the published ones, by MD5.

    For parquet files there is ``configs/data/cifar100.yaml``.

    Args:
        resize: ``direct``: the images are squares.
    """

    num_classes = 100

    def __init__(
        self, root: str, resize: Literal["direct", "center_crop", "square_crop"] = "direct", **kwargs: Any
    ) -> None:
        super().__init__(root, resize=resize, **kwargs)

    @property
    def class_names(self) -> list[str]:  # type: ignore[override]
        return list(self.part("test").classes)

    @property
    def expected(self) -> dict[str, int | None]:
        return {"train": 50_000, "test": 10_000}

    def part(self, name: str) -> datasets.CIFAR100:
        """Half of the data, as torchvision reads it."""
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


class Arrays:
    """Samples that are arrays of pixels (N, H, W, 3)."""

    def __init__(self, pixels: ndarray, labels: torch.Tensor, place: str) -> None:
        self.pixels, self.labels, self.place = pixels, labels, place

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
