"""Few-shot classification with the lists of NOAH (Zhang et al., 2022, arXiv:2206.04673)."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from datamodules.benchmark import Benchmark
from datamodules.files import Files, read_list
from datamodules.imagenet import WNIDS
from datamodules.transforms import Resize

FOLDERS = {  # folder of each dataset in the published lists, then in the published scripts
    "aircraft": ("fgvc-aircraft", "fgvc_aircraft"),
    "food101": ("food101", "food-101"),
    "flowers": ("oxford-flowers102", "oxford_flowers"),
    "pets": ("oxford-pets", "oxford_pets"),
    "cars": ("standford-cars", "stanford-cars", "stanford_cars"),
    "imagenet": ("imagenet", "ImageNet"),
}
SIZES = {  # validation and test images
    "aircraft": (3_333, 3_333),
    "food101": (20_200, 30_300),
    "flowers": (1_633, 2_463),
    "pets": (736, 3_669),
    "cars": (1_635, 8_041),
    "imagenet": (None, 50_000),
}
SHOTS, SEEDS = (1, 2, 4, 8, 16), (0, 1, 2)


class FewShot(Benchmark):
    """A few training images of each class of five fine-grained datasets, or of ImageNet for tests of robustness.

    Each dataset is a folder of ``root`` with ``annotations/train_meta.list.num_shot_16.seed_0`` and so on, and with
    ``images/`` (Cars: ``cars_train/`` and ``cars_test/``; ImageNet: ``train/`` and ``val/``). Lists and images may lie
    in folders of different spelling, as NOAH's do. Papers report the mean of the three draws.

    Args:
        shots: Training images of each class.
        shot_seed: Number of one of the three published draws of training images.
        resize: ``square_crop`` squashes to a larger square and crops its centre, as NOAH evaluates; ``center_crop``
            keeps the aspect; ``direct`` squashes to the square without a crop.
        crop_pct: Share of the resized side that the crop keeps: 224 of 256 pixels.
        drop_last: Leave out the last training batch if it is incomplete. By default it is kept, because one shot may be
            less than a batch.
    """

    tasks: ClassVar[dict[str, int]] = dict(zip(FOLDERS, (100, 101, 102, 37, 196, 1000), strict=True))
    aliases: ClassVar[dict[str, str]] = {name: task for task, names in FOLDERS.items() for name in names}
    lists: ClassVar[dict[str, dict[str, str]]] = {
        "tune": {"train": "train", "val": "val", "test": "test"},
        "final": {"train": "train", "test": "test"},
    }

    def __init__(
        self,
        root: str,
        task: str | None = None,
        shots: Literal[1, 2, 4, 8, 16] = 16,
        shot_seed: Literal[0, 1, 2] = 0,
        resize: Resize = "square_crop",
        crop_pct: float | None = 0.875,
        drop_last: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, task, resize=resize, crop_pct=crop_pct, drop_last=drop_last, **kwargs)
        self.shots = shots
        self.shot_seed = shot_seed
        if self.task == "imagenet" and self.split == "tune":
            raise ValueError("task=imagenet has no validation images besides the test images; pass --data.split final")

    @property
    def class_names(self) -> list[str]:
        return WNIDS if self.task == "imagenet" else super().class_names

    @property
    def published_sizes(self) -> dict[str, int | None]:
        val, test = SIZES[str(self.task)]
        doubled = {1: 2} if self.task == "pets" else {}  # because its one-shot lists hold every image twice
        train = {shots: self.num_classes * shots * doubled.get(shots, 1) for shots in SHOTS}
        every = {f"train_meta.list.num_shot_{shots}.seed_{seed}": train[shots] for shots in SHOTS for seed in SEEDS}
        return {"train": train[self.shots], **({} if val is None else {"val": val}), "test": test, **every}

    def samples_of(self, name: str) -> Files:
        files = {"train": f"train_meta.list.num_shot_{self.shots}.seed_{self.shot_seed}", "val": "val_meta.list"}
        files["test"] = "val_meta.list" if self.task == "imagenet" else "test_meta.list"
        file = self.place("annotations") / files.get(name, name)
        if self.task == "cars":  # paths begin with cars_train or cars_test
            images = self.place("cars_train").parent
        elif self.task == "imagenet":
            images = self.place("val" if name == "test" else "train")
        else:
            images = self.place("images")
        samples = read_list(file, images)
        self.compare(name, file, samples)
        repeated = len(samples.paths) - len(set(samples.paths))
        if repeated:
            print(f"note: {file.name} of {self.task} names {repeated} images again; kept, as papers did")
        return samples

    def place(self, inside: str) -> Path:
        """Folder of the dataset under one of its names, that has a folder ``inside``; its path with ``inside``."""
        names = FOLDERS[str(self.task)]
        found = [self.home / name / inside for name in names if (self.home / name / inside).is_dir()]
        if not found:
            raise FileNotFoundError(f"{self.home} has no folder {' or '.join(f'{name}/{inside}' for name in names)}")
        return found[0]

    def description(self) -> dict[str, Any]:
        return super().description() | {"shots": self.shots, "shot_seed": self.shot_seed}
