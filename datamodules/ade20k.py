"""ADE20K in the form of ADEChallengeData2016 (Zhou et al., CVPR 2017)."""

from typing import Any, ClassVar

from datamodules.base import Split
from datamodules.class_lists import read_classes
from datamodules.masks import Pairs, paired
from datamodules.published_masks import PublishedMasks

FOLDERS: dict[str, str] = {"train": "training", "test": "validation"}


class ADE20K(PublishedMasks):
    """ADE20K, 150 classes: ``images/training``, ``images/validation`` and the same below ``annotations``.

    Papers test on the validation images, so they are the test images here.

    Args:
        root: Folder ADEChallengeData2016.
        reduce_zero_label: Whether the number 0 in a mask means no class and 1 the first class, as in the archive;
            ``false`` for masks that were converted before.
    """

    classes = read_classes("ade20k")
    sizes: ClassVar[dict[str, int]] = {"train": 20_210, "test": 2_000}

    def __init__(self, root: str, reduce_zero_label: bool = True, **kwargs: Any) -> None:
        super().__init__(root, reduce_zero_label=reduce_zero_label, **kwargs)

    def read(self, split: Split) -> Pairs:
        folder = FOLDERS[split]
        return paired(self.home / "images" / folder, self.home / "annotations" / folder, (".jpg", ".png"))
