"""COCO-Stuff in its two forms, 10k and 164k (Caesar et al., CVPR 2018, arXiv:1612.03716)."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.base import Split
from datamodules.class_lists import read_classes
from datamodules.files import read_text
from datamodules.joint_transforms import IGNORED
from datamodules.masks import Pairs, labels_of, paired
from datamodules.published_masks import PublishedMasks
from datamodules.samples import regular

NUMBERS = 182  # numbers of COCO-Stuff, from 1
UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)  # numbers that no image has
FOLDERS: dict[str, str] = {"train": "train2017", "test": "val2017"}


def class_of_number() -> Tensor:
    """Class of each number from 0 to 255 of the 10k masks, uint8: 0 is no class, 1 the first one; 254 if unused."""
    table = torch.full((256,), 254, dtype=torch.uint8)
    used = [number for number in range(1, NUMBERS + 1) if number not in UNUSED]
    table[used] = torch.arange(len(used), dtype=torch.uint8)
    table[0] = table[IGNORED] = IGNORED
    return table


class COCOStuff(PublishedMasks):
    """COCO-Stuff, 171 classes of things and stuff.

    ``164k``: ``images/train2017``, ``images/val2017``, and masks of ``stuffthingmaps_trainval2017.zip`` in
    ``annotations/train2017`` and ``annotations/val2017``. ``10k``: ``images``, ``annotations/*.mat``, which need scipy,
    and ``imageLists/train.txt``, ``imageLists/test.txt``. Papers test on the images of ``val2017`` or ``test.txt``.

    Args:
        root: Folder of the archive.
        version: ``164k``: 118,287 training and 5,000 test images. ``10k``: 9,000 and 1,000.
    """

    classes = read_classes("coco_stuff")

    def __init__(self, root: str, version: Literal["164k", "10k"] = "164k", **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        if self.reduce_zero_label:
            raise ValueError("reduce_zero_label=true: COCO-Stuff has its own numbers of no class; leave it out")
        self.version, self.class_of = version, class_of_number()

    def expected(self, split: str) -> int | None:
        sizes = (9_000, 1_000) if self.version == "10k" else (118_287, 5_000)
        return sizes[0 if split == "train" else 1]

    def read(self, split: Split) -> Pairs:
        if self.version == "164k":
            images, masks = self.home / "images" / FOLDERS[split], self.home / "annotations" / FOLDERS[split]
            return paired(images, masks, (".jpg", ".png"))
        return listed(self.home, self.home / "imageLists" / f"{split}.txt")

    def labels(self, mask: Image.Image) -> Tensor:
        if mask.mode not in ("L", "P"):
            raise ValueError(f"its mask has the mode {mask.mode}; expected one number a pixel, of 8 bits")
        numbers = torch.from_numpy(np.asarray(mask).astype(np.int64))
        if self.version == "164k":  # their first number is 0
            numbers = torch.where(numbers == IGNORED, IGNORED, (numbers + 1).clamp(max=254))
        classes = self.class_of[numbers]
        return labels_of(Image.fromarray(classes.numpy()), self.num_classes, reduce_zero=False)

    def item_settings(self) -> tuple[Any, ...]:
        return (*super().item_settings(), self.version)

    def description(self) -> dict[str, Any]:
        return super().description() | {"version": self.version}


class MatPairs(Pairs):
    """Images and masks in Matlab files, whose variable ``S`` has the numbers of the pixels."""

    def target(self, index: int) -> Image.Image:
        try:
            from scipy.io import loadmat
        except ImportError as error:
            raise ValueError("masks of COCO-Stuff 10k need scipy: pip install scipy (or `.[mat]` here)") from error
        file = regular(self.masks[index])
        try:
            return Image.fromarray(loadmat(file)["S"].astype(np.uint8))
        except (KeyError, NotImplementedError, TypeError, ValueError) as error:
            raise OSError(f"{file} is no Matlab file of numbers S: {error}") from error

    def keep(self, indices: list[int]) -> "MatPairs":
        return MatPairs([self.images[i] for i in indices], [self.masks[i] for i in indices])


def listed(root: Path, file: Path) -> MatPairs:
    """Images and masks that a list names, a name without suffix in each line.

    Raises:
        FileNotFoundError: If the list, an image or a mask is missing.
        ValueError: If it is empty.
    """
    names = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{file} lists no images")
    images = [root / "images" / f"{name}.jpg" for name in names]
    masks = [root / "annotations" / f"{name}.mat" for name in names]
    missing = [path for path in (*images, *masks) if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{file} names {len(names)} images; {len(missing)} files are missing, first {missing[0]}"
        )
    return MatPairs(images, masks)
