"""What benchmarks share: published splits, and the rule that test images choose nothing unless asked to."""

import difflib
from abc import abstractmethod
from typing import Any, ClassVar, Literal

from datamodules.base import ImageDataModule
from datamodules.files import existing
from datamodules.samples import Samples


class TrainTest(ImageDataModule):
    """Published training and test images, and no validation images: the last epoch counts.

    Args:
        root: Folder of the data.
        report_best_test: Validate on the test images after every epoch and keep the best, as several papers report.
            Such a number is too high, and results say that it was chosen so.
    """

    def __init__(self, root: str, report_best_test: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root, self.home, self.report_best_test = root, existing(root), report_best_test

    @abstractmethod
    def samples_of(self, name: str) -> Samples:
        """The samples of ``train`` or ``test``."""

    def samples(self, split: Literal["train", "val", "test"]) -> Samples | None:
        if split == "val":
            return self.samples_of("test") if self.report_best_test else None
        return self.samples_of(split)

    @property
    def selection(self) -> str:
        return "best test epoch" if self.report_best_test else "last epoch"


class Benchmark(ImageDataModule):
    """Tasks with published lists of images; a subclass says which, and reads them.

    Args:
        root: Folder of the benchmark.
        task: Which of its tasks.
        split: ``tune`` leaves out the validation images, to choose by them; ``final`` trains on all that may be trained
            on, and the last epoch counts. Both test on the test images.
        report_best_test: With ``final``, validate on the test images after every epoch and keep the best, as several
            papers report. Such a number is too high, and results say that it was chosen so.
    """

    tasks: ClassVar[dict[str, int]]  # classes of each
    aliases: ClassVar[dict[str, str]] = {}
    lists: ClassVar[dict[str, dict[str, str]]]  # what each split trains, validates and tests on

    def __init__(
        self,
        root: str,
        task: str | None = None,
        split: Literal["tune", "final"] = "tune",
        report_best_test: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if report_best_test and split != "final":
            raise ValueError("report_best_test=true goes with split=final; split=tune chooses by validation images")
        self.home = existing(root)
        self.root, self.split, self.report_best_test = root, split, report_best_test
        self.task = self.aliases.get(task or "", task)
        if task is not None and self.task not in self.tasks:
            near = difflib.get_close_matches(task, [*self.tasks, *self.aliases], n=3, cutoff=0.4)
            hint = f"nearest: {', '.join(near)}; " if near else ""
            raise ValueError(f"unknown task {task!r}; {hint}known: {', '.join(self.tasks)}")

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """From the table: not every class has an image in a small split."""
        if self.task is None:
            raise ValueError(f"data.task is missing; known: {', '.join(self.tasks)}")
        return self.tasks[self.task]

    @property
    def class_names(self) -> list[str]:  # type: ignore[override]
        return [str(number) for number in range(self.num_classes)]

    @property
    @abstractmethod
    def expected(self) -> dict[str, int | None]:
        """Every list of the task with its published size."""

    @abstractmethod
    def samples_of(self, name: str) -> Samples:
        """The samples of one list of the task."""

    def compare(self, name: str, place: object, samples: Samples) -> None:
        """Tell when a list has not the published size: its accuracies are none to set beside the papers'."""
        count, expected = len(samples.labels), self.expected[name]
        if expected not in (None, count):
            print(f"note: {place}: {count:,} images, {expected:,} in papers; accuracies are not comparable")

    def samples(self, split: Literal["train", "val", "test"]) -> Samples | None:
        if split == "val" and self.report_best_test:
            split = "test"
        name = self.lists[self.split].get(split)
        return None if name is None else self.samples_of(name)

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.split == "final":
            self.samples("test")  # what is missing there should not be missed after the last epoch
        super().setup(stage)

    @property
    def selection(self) -> str:
        return "best test epoch" if self.report_best_test else super().selection

    def description(self) -> dict[str, Any]:
        return super().description() | {"data_task": self.task, "split": self.split}
