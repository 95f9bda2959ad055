"""Videos whose class stands in a list file, as the lists of K400 and SSv2."""

from typing import Any

from datamodules.base import Split
from datamodules.clips import ClipFiles
from datamodules.files import existing, listed, read_rows, read_text
from datamodules.video_module import VideoModule


class VideoList(VideoModule):
    """Videos of list files, for ``--task video_classification``: each line is ``path label``, with a number as label.

    A path leads to a video file, or to a folder with an image for each frame.

    Args:
        root: Folder that the paths start from.
        lists: Folder of the list files and of ``classes.txt``, below ``root``. The latter has the name of a class in
            each line; without it the names are numbers.
        train_file: List of the training videos.
        val_file: List of the validation videos; without it the last epoch counts.
        test_file: List of the test videos.
    """

    def __init__(
        self,
        root: str,
        lists: str = ".",
        train_file: str = "train.txt",
        val_file: str = "val.txt",
        test_file: str = "test.txt",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root, self.home = root, existing(root)
        self.folder = self.home / lists
        self.files = {"train": train_file, "val": val_file, "test": test_file}
        self._splits: dict[str, ClipFiles] | None = None
        self._names: list[str] | None = None

    @property
    def lists(self) -> dict[str, ClipFiles]:
        """Videos of each split that has a list; the training split must have one."""
        if self._splits is None:
            self._splits = {}
            for split, name in self.files.items():
                file = self.folder / name
                if split == "train" or file.is_file():
                    found = listed(file, self.home, read_rows(file))
                    self._splits[split] = ClipFiles(found.root, found.paths, found.labels.tolist())
        return self._splits

    @property
    def class_names(self) -> list[str]:
        if self._names is None:
            self._names = self.read_names()
        return self._names

    def read_names(self) -> list[str]:
        """Names of the classes, from their file or by their numbers.

        Raises:
            ValueError: If there are fewer than two, or one twice.
        """
        file = self.folder / "classes.txt"
        if not file.is_file():
            return [str(number) for number in range(max(int(clips.labels.max()) for clips in self.lists.values()) + 1)]
        names = [line.strip() for line in read_text(file).strip().splitlines()]
        if len(names) < 2 or "" in names or len({*names}) < len(names):
            raise ValueError(f"{file}: expected the name of a class in each line, at least 2, each one once")
        return names

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def samples(self, split: Split) -> ClipFiles | None:
        return self.lists.get(split)
