"""Polyps of Kvasir-SEG (Jha et al., MMM 2020, arXiv:1911.07069), as GPS trains on them."""

import hashlib
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor, from_numpy

from datamodules.base import Split
from datamodules.files import existing
from datamodules.masks import Pairs, paired
from datamodules.samples import IMAGE_SUFFIXES
from datamodules.segmentation_images import SegmentationImages

TRAINED, TESTED = "Kvasir-SEG", "sessile-main-Kvasir-SEG"
TEST_SHARE = 0.12  # of the images, 120 of the published 1,000
FOREGROUND = 128  # a pixel of a larger value is a polyp; masks are JPEG files, with values between black and white
LEAK = "leak: split=official tests on images of the training folder; numbers are too high, use split=hashed for yours"


class Polyps(SegmentationImages):
    """Polyps of Kvasir-SEG: background and polyp, from ``Kvasir-SEG/images`` and ``Kvasir-SEG/masks``.

    Args:
        root: Folder of ``Kvasir-SEG``, and for ``official`` of ``sessile-main-Kvasir-SEG``.
        split: ``hashed``: 880 training and 120 test images, chosen by the hash of their names. ``official``: all images
            train, and those of ``sessile-main-Kvasir-SEG`` test, as in the code of GPS. These are, as far as known,
            training images too, so that such a number is too high.
    """

    names = ("background", "polyp")

    def __init__(self, root: str, split: Literal["hashed", "official"] = "hashed", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.reduce_zero_label:
            raise ValueError("reduce_zero_label=true: black is the background here; leave it out")
        self.root, self.home, self.split = root, existing(root), split

    @property
    def class_names(self) -> list[str]:
        return [*self.names]

    def samples(self, split: Split) -> Pairs | None:
        if split == "val":
            return None
        official = self.split == "official"
        home = self.home / (TESTED if official and split == "test" else TRAINED)
        pairs = paired(home / "images", home / "masks", IMAGE_SUFFIXES)
        return pairs if official else pairs.keep(hashed(pairs)[split])

    def labels(self, mask: Image.Image) -> Tensor:
        polyp = np.asarray(mask.convert("L")) > FOREGROUND
        if not polyp.any():
            raise ValueError("its mask is empty: no pixel is a polyp")
        return from_numpy(polyp.astype(np.uint8))[None]

    def expected(self, split: str) -> int | None:
        sizes = {"train": 1000, "test": 196} if self.split == "official" else {"train": 880, "test": 120}
        return sizes.get(split)

    def remarks(self) -> list[str]:
        return [LEAK] if self.split == "official" else []

    def item_settings(self) -> tuple[Any, ...]:
        return (*super().item_settings(), FOREGROUND)

    def description(self) -> dict[str, Any]:
        return super().description() | {"split": self.split}


def hashed(pairs: Pairs) -> dict[str, list[int]]:
    """Indices of the training and of the test images, each in the order of the files.

    The files are ordered by the SHA-256 of their names without suffix, and the last 12 % test.
    """
    order = sorted(range(len(pairs)), key=lambda index: hashlib.sha256(pairs.images[index].stem.encode()).digest())
    kept = len(order) - round(TEST_SHARE * len(order))
    return {"train": sorted(order[:kept]), "test": sorted(order[kept:])}
