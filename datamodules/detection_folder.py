"""Folders of images with COCO's JSON of instances."""

from typing import Any

from datamodules.base import Split
from datamodules.coco_json import Categories, CocoSamples, read_instances
from datamodules.detection_images import DetectionImages
from datamodules.files import existing


class DetectionFolder(DetectionImages):
    """Images and objects in the form of COCO: ``images/SPLIT/NAME.jpg`` and ``annotations/SPLIT.json``.

    Args:
        root: Folder of the images and the annotations.
        images: Folder of the images of a split below ``root``; ``{split}`` stands for the name of the split.
        annotations: File of the objects of a split below ``root``.
        train_split: Name of the training split.
        val_split: Name of the validation split; without its file the last epoch counts.
        test_split: Name of the test split.
    """

    def __init__(
        self,
        root: str,
        images: str = "images/{split}",
        annotations: str = "annotations/{split}.json",
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "test",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root, self.home = root, existing(root)
        self.images, self.annotations = images, annotations
        self.split_names: dict[str, str] = {"train": train_split, "val": val_split, "test": test_split}
        self.found: dict[str, tuple[CocoSamples, Categories]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"found": {}}  # for worker processes: a sample has its objects

    def samples(self, split: Split) -> CocoSamples | None:
        name = self.split_names[split]
        file = self.home / self.annotations.replace("{split}", name)
        if split != "train" and not file.is_file():
            return None
        if name not in self.found:
            samples, categories = read_instances(file, self.home / self.images.replace("{split}", name))
            for other, (_, known) in self.found.items():
                if known != categories:
                    raise ValueError(f"{file} has other categories than the split {other}; expected equal ones")
            self.found[name] = samples, categories
        return self.found[name][0]

    @property
    def categories(self) -> Categories:
        """Classes of the first split that has a file."""
        splits: tuple[Split, ...] = ("test", "val", "train")  # that of a test may be all there is, and is read quickly
        if not self.found:
            next(filter(None, map(self.samples, splits)))
        return next(iter(self.found.values()))[1]

    @property
    def class_names(self) -> list[str]:
        return self.categories.names

    @property
    def category_ids(self) -> list[int]:
        return self.categories.ids
