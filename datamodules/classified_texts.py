"""Texts or pairs of texts, each with one class or one number."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from datamodules.base import Split
from datamodules.samples import Samples
from datamodules.text_samples import LabelledTexts, Text
from datamodules.texts import TextModule
from lightning_modules.task import Targets


class ClassifiedTexts(TextModule):
    """Texts for ``--task text_classification``; a subclass gives ``samples`` and ``class_names``.

    Targets of a batch are classes (B,), int64, or numbers (B,), fp32, if there are no names of classes.
    """

    targets: Targets = "labels"

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Name of every class, in the order of their numbers; empty if the targets are numbers."""

    @abstractmethod
    def samples(self, split: Split) -> LabelledTexts | None: ...

    @property
    def num_classes(self) -> int:
        """Number of classes, also of those without a text; 1 for numbers, because the head has one output."""
        return len(self.class_names) or 1

    @property
    def num_targets(self) -> int:
        """Numbers of a text."""
        return 1

    @property
    def target_names(self) -> list[str]:
        """Name of the number, in predictions."""
        return ["number"]

    def follow(self, task: Any) -> None:
        self.targets = "labels" if self.class_names else "numbers"
        super().follow(task)

    def item(self, sample: Text) -> tuple[dict[str, Tensor], Any]:
        """Inputs of a text, each (N,), and its class or number."""
        inputs = self.tokens(sample.first, sample.second or None)
        return {name: torch.tensor(values, dtype=torch.long) for name, values in inputs.items()}, sample.target

    def check_samples(self, split: str, samples: Samples) -> None:
        """Print a note about classes without a training text as well."""
        super().check_samples(split, samples)
        if split == "train" and self.class_names and isinstance(samples, LabelledTexts):
            missing = self.num_classes - len(samples.labels.unique())
            if missing:
                print(f"note: {missing} of {self.num_classes} classes have no training text")

    def target_key(self, samples: Any) -> Any:
        return samples.labels.tolist()
