"""Published sets of videos with list files, which papers test on their validation videos."""

from abc import abstractmethod
from typing import Any, ClassVar

from datamodules.base import Split
from datamodules.clips import ClipFiles
from datamodules.video_list import VideoList


class PublishedClips(VideoList):
    """Published training and test videos; subclasses have their number of classes.

    Args:
        root: Folder that the paths in the lists start from.
        lists: Folder of the list files, and of ``classes.txt`` if there is one, below ``root``.
        train_file: List of the training videos, ``path label`` in each line.
        test_file: List of the videos that papers test on.
        report_best_test: Validate on the test videos and keep the best epoch, as papers report. Such a number is too
            high, and results name it as chosen so. Otherwise there are no validation videos, and the last epoch counts.
    """

    sizes: ClassVar[dict[str, int]] = {}  # published videos of each split, if they are fixed

    def __init__(
        self,
        root: str,
        lists: str = ".",
        train_file: str = "train.txt",
        test_file: str = "val.txt",
        report_best_test: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, lists, train_file=train_file, val_file="", test_file=test_file, **kwargs)
        self.report_best_test = report_best_test

    @property
    @abstractmethod
    def count(self) -> int:
        """Number of classes."""

    def read_names(self) -> list[str]:
        if not (self.folder / "classes.txt").is_file():
            return [str(number) for number in range(self.count)]
        names = super().read_names()
        if len(names) != self.count:
            raise ValueError(f"{self.folder / 'classes.txt'} has {len(names)} classes; expected {self.count}")
        return names

    def samples(self, split: Split) -> ClipFiles | None:
        if split == "val":
            return super().samples("test") if self.report_best_test else None
        return super().samples(split)

    @property
    def kept_epoch(self) -> str:
        return "best test epoch" if self.report_best_test else super().kept_epoch

    def expected(self, split: str) -> int | None:
        return self.sizes.get("test" if split == "val" else split)
