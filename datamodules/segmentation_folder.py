"""Folders of images and masks."""

from typing import Any

from datamodules.base import Split
from datamodules.files import existing, read_text
from datamodules.masks import Pairs, paired
from datamodules.samples import IMAGE_SUFFIXES
from datamodules.segmentation_images import SegmentationImages


class SegmentationFolder(SegmentationImages):
    """Images and masks in folders: ``images/SPLIT/NAME.jpg`` and ``masks/SPLIT/NAME.png``.

    A mask is a grey or palette image whose pixels are numbers of classes; 255 is no class.

    Args:
        root: Folder of ``images``, ``masks`` and the list of classes.
        classes: File with the name of a class in each line, below ``root``.
        train_split: Folder of the training images inside ``images`` and ``masks``.
        val_split: Folder of the validation images; without it the last epoch counts.
        test_split: Folder of the test images.
    """

    def __init__(
        self,
        root: str,
        classes: str = "classes.txt",
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "test",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root, self.home = root, existing(root)
        self.split_names: dict[str, str] = {"train": train_split, "val": val_split, "test": test_split}
        file = self.home / classes
        self.names = [line.strip() for line in read_text(file).strip().splitlines()]
        if len(self.names) < 2 or "" in self.names or len({*self.names}) < len(self.names):
            raise ValueError(f"{file}: expected the name of a class in each line, at least 2, each one once")

    @property
    def class_names(self) -> list[str]:
        return self.names

    def samples(self, split: Split) -> Pairs | None:
        name = self.split_names[split]
        images, masks = self.home / "images" / name, self.home / "masks" / name
        if split != "train" and not images.is_dir() and not masks.is_dir():
            return None
        return paired(images, masks, IMAGE_SUFFIXES)
