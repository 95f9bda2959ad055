"""Images with masks: files in pairs, and the labels of a mask."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.joint_transforms import IGNORED
from datamodules.samples import ImageSample, ImageSamples, open_image, regular

MODES = ("1", "L", "P", "I", "I;16")  # of Pillow, with one number a pixel


class Pairs(ImageSamples):
    """Images and their masks, in files of the same name.

    Args:
        images: File of each image.
        masks: File of the mask of each image.
    """

    def __init__(self, images: list[Path], masks: list[Path]) -> None:
        self.images, self.masks = images, masks

    def __len__(self) -> int:
        return len(self.images)

    def open(self, index: int) -> Image.Image:
        return open_image(self.images[index])

    def __getitem__(self, index: int) -> ImageSample:
        image = self.open(index)
        try:
            return ImageSample(image, self.target(index))
        except (OSError, ValueError):
            image.close()
            raise

    def target(self, index: int) -> Image.Image:
        """Mask as stored."""
        return open_image(self.masks[index])

    def content(self, index: int) -> bytes:
        return regular(self.images[index]).read_bytes()

    def stored(self, index: int) -> bytes:
        parts = self.content(index), regular(self.masks[index]).read_bytes()
        return b"".join(f"{len(part)} ".encode() + part for part in parts)

    def name(self, index: int) -> str:
        return str(self.images[index])

    def keep(self, indices: list[int]) -> "Pairs":
        return Pairs([self.images[i] for i in indices], [self.masks[i] for i in indices])


def labels_of(mask: Image.Image, classes: int, reduce_zero: bool) -> Tensor:
    """Labels (1, H, W) of a mask, uint8; ``IGNORED`` for pixels without a class.

    Args:
        mask: Mask as stored.
        classes: Number of classes.
        reduce_zero: Whether 0 means no class, and 1 the first class.

    Raises:
        ValueError: If the mask has colours, no labelled pixel, or a class beyond the last one.
    """
    if mask.mode not in MODES:
        raise ValueError(f"its mask has the mode {mask.mode}; expected one number a pixel, a grey or a palette image")
    values = torch.from_numpy(np.asarray(mask).astype(np.int64))
    if reduce_zero:
        values = torch.where((values == 0) | (values == IGNORED), IGNORED, values - 1)
    labelled = values[values != IGNORED]
    if not len(labelled):
        raise ValueError("its mask is empty: no pixel has a class")
    if int(labelled.max()) >= classes or int(labelled.min()) < 0:
        wrong = int(labelled.max()) if int(labelled.max()) >= classes else int(labelled.min())
        raise ValueError(f"its mask has the class {wrong}, outside 0 to {classes - 1} ({IGNORED} for no class)")
    return values.to(torch.uint8)[None]


def paired(images: Path, masks: Path, suffixes: tuple[str, ...]) -> Pairs:
    """Images and masks of two folders, matched by their names without the suffix.

    Raises:
        FileNotFoundError: If a folder is missing or empty, or a file has no partner.
        ValueError: If two files of a folder have one name.
    """
    found = []
    for folder in (images, masks):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in suffixes)
        by_name = {file.stem: file for file in files}
        if len(by_name) < len(files):
            twice = next(file for file in files if by_name[file.stem] != file)
            raise ValueError(f"{twice} and {by_name[twice.stem].name}: expected one file of a name")
        found.append(by_name)
    pictures, labels = found
    for these, those, what in ((pictures, masks, "mask"), (labels, images, "image")):
        alone = sorted(these.keys() - (labels if what == "mask" else pictures).keys())
        if alone:
            raise FileNotFoundError(
                f"{len(alone)} of {len(these)} files have no {what} of the same name in {those}, first "
                f"{these[alone[0]]}"
            )
    if not pictures:
        raise FileNotFoundError(f"{images} holds no images ({', '.join(suffixes)})")
    return Pairs(list(pictures.values()), [labels[name] for name in pictures])
