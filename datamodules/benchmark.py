"""Benchmarks: published lists of images, where test images choose nothing unless the user asks for it."""

import difflib
from abc import abstractmethod
from typing import Any, ClassVar, Literal

from datamodules.base import Split
from datamodules.files import existing
from datamodules.labelled_images import LabelledImages
from datamodules.samples import LabelledSamples


class Published(LabelledImages):
    """Images of published lists in one folder.

    Args:
        root: Folder of the data.
        report_best_test: Validate on the test images after every epoch and keep the best epoch, as several papers
            report. Such a number is too high, and results name it as chosen so.
    """

    def __init__(self, root: str, report_best_test: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = root
        self.home = existing(root)
        self.report_best_test = report_best_test

    @property
    @abstractmethod
    def published_sizes(self) -> dict[str, int | None]: ...

    @abstractmethod
    def samples_of(self, name: str) -> LabelledSamples:
        """Samples of one list of ``published_sizes``."""

    @abstractmethod
    def list_of(self, split: Split) -> str | None:
        """Name of the list that a split consists of, or None if there is no such split."""

    def samples(self, split: Split) -> LabelledSamples | None:
        name = self.list_of("test" if split == "val" and self.report_best_test else split)
        return None if name is None else self.samples_of(name)

    @property
    def kept_epoch(self) -> str:
        return "best test epoch" if self.report_best_test else super().kept_epoch


class TrainTest(Published):
    """Published training and test images, and no validation images: the last epoch counts."""

    def list_of(self, split: Split) -> str | None:
        return None if split == "val" else split


class Benchmark(Published):
    """Datasets with published lists of images; a subclass has their table, and reads them.

    Args:
        root: Folder of the benchmark.
        task: Name of one of its datasets.
        split: ``tune`` leaves out the validation images, to choose by them; ``final`` trains on all images that may be
            trained on, and the last epoch counts. Both test on the test images.
        report_best_test: With ``final``, validate on the test images after every epoch and keep the best epoch, as
            several papers report. Such a number is too high, and results name it as chosen so.
    """

    tasks: ClassVar[dict[str, int]]  # number of classes of each dataset
    aliases: ClassVar[dict[str, str]] = {}  # other names of datasets
    lists: ClassVar[dict[str, dict[str, str]]]  # lists of "tune" and "final": split -> name of its list

    def __init__(
        self,
        root: str,
        task: str | None = None,
        split: Literal["tune", "final"] = "tune",
        report_best_test: bool = False,
        **kwargs: Any,
    ) -> None:
        if report_best_test and split != "final":
            raise ValueError("report_best_test=true goes with split=final; split=tune chooses by validation images")
        super().__init__(root, report_best_test, **kwargs)
        self.split = split
        self.task = self.aliases.get(task or "", task)
        if task is not None and self.task not in self.tasks:
            near = difflib.get_close_matches(task, [*self.tasks, *self.aliases], n=3, cutoff=0.4)
            hint = f"nearest: {', '.join(near)}; " if near else ""
            raise ValueError(f"unknown task {task!r}; {hint}known: {', '.join(self.tasks)}")

    @property
    def num_classes(self) -> int:
        """Number of classes from the table, because not every class has an image in a small split."""
        if self.task is None:
            raise ValueError(f"data.task is missing; known: {', '.join(self.tasks)}")
        return self.tasks[self.task]

    @property
    def class_names(self) -> list[str]:
        return [str(number) for number in range(self.num_classes)]

    def list_of(self, split: Split) -> str | None:
        return self.lists[self.split].get(split)

    def compare(self, name: str, place: object, samples: LabelledSamples) -> None:
        """Print a note if a list has not its published size, because results are not comparable with papers then."""
        count, expected = len(samples), self.published_sizes[name]
        if expected not in (None, count):
            print(f"note: {place}: {count:,} images, {expected:,} in papers; accuracies are not comparable")

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.split == "final":
            self.samples("test")  # otherwise a missing test list would stop the run only after the last epoch
        super().setup(stage)

    def description(self) -> dict[str, Any]:
        return super().description() | {"data_task": self.task, "split": self.split}
