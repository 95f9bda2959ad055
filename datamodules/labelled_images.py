"""Images of classes: checks of their labels, and the names of the classes."""

from abc import abstractmethod
from typing import Any, cast

from datamodules.base import Split
from datamodules.image_module import ImageModule
from datamodules.samples import LabelledSamples


class LabelledImages(ImageModule):
    """Images, each of one class; subclasses give ``samples``, ``num_classes`` and ``class_names``."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes, also of those without an image."""

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Name of every class, in the order of their numbers."""

    @abstractmethod
    def samples(self, split: Split) -> LabelledSamples | None: ...

    @property
    def published_sizes(self) -> dict[str, int | None]:
        """Names of all lists that ``samples_of`` reads; each with its published number of samples, if there is one."""
        splits: tuple[Split, ...] = ("train", "val", "test")
        return {split: None for split in splits if self.samples(split) is not None}

    def samples_of(self, name: str) -> LabelledSamples:
        """Samples of one list of ``published_sizes``."""
        samples = self.samples(cast(Split, name))
        assert samples is not None
        return samples

    def check_samples(self, split: str, samples: Any) -> None:
        """Refuse labels outside the classes as well, and print a note about classes without a training image."""
        super().check_samples(split, samples)
        labels = samples.labels
        outside = ((labels < 0) | (labels >= self.num_classes)).nonzero().flatten()
        if len(outside):
            first = int(outside[0])
            raise ValueError(
                f"{split}: {samples.name(first)} has label {int(labels[first])}, outside 0 to "
                f"{self.num_classes - 1} ({len(outside)} such samples)"
            )
        if split == "train":
            missing = self.num_classes - len(labels.unique())
            if missing:
                print(f"note: {missing} of {self.num_classes} classes have no training image")

    def target_key(self, samples: Any) -> Any:
        return samples.labels.tolist()
