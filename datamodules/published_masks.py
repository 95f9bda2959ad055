"""Published sets of images with masks, which papers test on their validation images."""

from abc import abstractmethod
from typing import Any, ClassVar

from datamodules.base import Split
from datamodules.class_lists import Classes
from datamodules.files import existing
from datamodules.masks import Pairs
from datamodules.palette import palette
from datamodules.segmentation_images import SegmentationImages


class PublishedMasks(SegmentationImages):
    """Published training and test images with masks; subclasses have their table, and read them.

    Args:
        root: Folder of the data.
        report_best_test: Validate on the test images and keep the best epoch, as papers report. Such a number is too
            high, and results name it as chosen so. Otherwise there are no validation images, and the last epoch counts.
    """

    classes: ClassVar[Classes]
    sizes: ClassVar[dict[str, int]]  # published images of each split

    def __init__(self, root: str, report_best_test: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root, self.home = root, existing(root)
        self.report_best_test = report_best_test

    @abstractmethod
    def read(self, split: Split) -> Pairs:
        """Images and masks of the split ``train`` or ``test``."""

    def samples(self, split: Split) -> Pairs | None:
        if split == "val" and not self.report_best_test:
            return None
        return self.read("test" if split == "val" else split)

    @property
    def class_names(self) -> list[str]:
        return self.classes.names

    @property
    def palette(self) -> list[int]:
        colours = [value for colour in self.classes.colours for value in colour]
        return colours + palette()[len(colours) :]

    @property
    def kept_epoch(self) -> str:
        return "best test epoch" if self.report_best_test else super().kept_epoch

    def expected(self, split: str) -> int | None:
        return self.sizes.get("test" if split == "val" else split)
