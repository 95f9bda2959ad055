"""Images without labels: one file, or all files of a folder."""

import os
from pathlib import Path
from typing import Any

from datamodules.base import Split
from datamodules.files import Files
from datamodules.labelled_images import LabelledImages
from datamodules.samples import IMAGE_SUFFIXES


class ImageFiles(LabelledImages):
    """Images to predict, without labels. ``predict --images PATH`` stands for this class with the options of the run.

    Args:
        root: An image, or a folder whose images, also those in inner folders, are read in the order of their names.
        class_names: Names of the classes of the model.
    """

    def __init__(self, root: str, class_names: list[str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not class_names:
            raise ValueError("data.class_names: expected the classes of the model; predict --images takes them from it")
        self.root, self.names = root, class_names
        self.files = find_images(root)

    @property
    def class_names(self) -> list[str]:
        return self.names

    @property
    def num_classes(self) -> int:
        return len(self.names)

    def samples(self, split: Split) -> Files | None:
        """All images as the test split; their labels are zeros, which a prediction does not read."""
        if split != "test":
            return None
        if self.trainer is not None and self.trainer.state.fn == "test":
            raise ValueError(f"{self.root} has no labels, which a test needs: use predict, or --data ImageDataset")
        return self.files


def find_images(root: str) -> Files:
    """Image files at a path, with the label 0.

    Raises:
        FileNotFoundError: If there is nothing at the path, or no image in the folder.
    """
    path = Path(root).expanduser()
    if path.is_file():
        return Files(path.parent, [path.name], [0])
    if not path.is_dir():
        raise FileNotFoundError(f"images={root!r}: no such file or folder")
    found = [
        os.path.relpath(os.path.join(folder, file), path)
        for folder, _, files in os.walk(path)
        for file in files
        if file.lower().endswith(IMAGE_SUFFIXES) and not file.startswith(".")
    ]
    if not found:
        raise FileNotFoundError(f"images={root!r}: no image in this folder; expected {', '.join(IMAGE_SUFFIXES)}")
    return Files(path, sorted(found), [0] * len(found))
