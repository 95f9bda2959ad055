"""COCO 2017 (Lin et al., ECCV 2014, arXiv:1405.0312)."""

from typing import Any, ClassVar

from datamodules.base import Split
from datamodules.coco_json import CocoSamples
from datamodules.detection_folder import DetectionFolder


class COCO(DetectionFolder):
    """COCO 2017, 80 classes: ``train2017``, ``val2017`` and ``annotations/instances_SPLIT.json``.

    Papers test on the validation images, because the test images have no public labels; so they are the test images
    here.

    Args:
        root: Folder of the images and of ``annotations``.
        report_best_test: Validate on the test images and keep the best epoch. Such a number is too high, and results
            name it as chosen so. Otherwise there are no validation images, and the last epoch counts.
    """

    sizes: ClassVar[dict[str, int]] = {"train": 118_287, "test": 5_000}

    def __init__(self, root: str, report_best_test: bool = False, **kwargs: Any) -> None:
        names = {"train_split": "train2017", "val_split": "val2017", "test_split": "val2017"}
        files = {"images": "{split}", "annotations": "annotations/instances_{split}.json"}
        super().__init__(root, **files, **names, **kwargs)
        self.report_best_test = report_best_test

    def samples(self, split: Split) -> CocoSamples | None:
        return None if split == "val" and not self.report_best_test else super().samples(split)

    @property
    def kept_epoch(self) -> str:
        return "best test epoch" if self.report_best_test else super().kept_epoch

    def expected(self, split: str) -> int | None:
        return self.sizes.get("test" if split == "val" else split)
