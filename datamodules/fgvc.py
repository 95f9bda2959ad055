"""Fine-grained classification: five datasets with the splits of VPT (Jia et al., 2022, arXiv:2203.12119)."""

import json
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import torch

from datamodules.benchmark import Benchmark
from datamodules.files import Files, listed, read_text

FOLDERS = {  # names of the folder of each dataset, and the folder inside from which the paths of its lists start
    "cub": (("cub", "CUB_200_2011", "CUB-200-2011"), "images"),
    "nabirds": (("nabirds", "NABirds"), "images"),
    "flowers": (("flowers", "OxfordFlowers", "OxfordFlower", "oxford_flowers", "oxford-flowers102"), "."),
    "dogs": (("dogs", "StanfordDogs", "stanford_dogs", "stanford-dogs"), "Images"),
    "cars": (("cars", "StanfordCars", "stanford_cars", "stanford-cars"), "."),
}
SIZES = {
    "cub": (5_394, 600, 5_794),
    "nabirds": (21_536, 2_393, 24_633),
    "flowers": (1_020, 1_020, 6_149),
    "dogs": (10_800, 1_200, 8_580),
    "cars": (7_329, 815, 8_041),
}


class FGVC(Benchmark):
    """CUB-200-2011, NABirds, Oxford Flowers, Stanford Dogs and Stanford Cars, by VPT's lists.

    Each dataset is a folder of ``root``, or ``root`` itself. The folder holds the official images and VPT's
    ``train.json``, ``val.json`` and ``test.json`` (image to class number); ``final`` trains on the union of the first
    two. The lists of Cars name the images of its merged archive (``car_ims/000001.jpg``). The first archive
    (``cars_train/00001.jpg``) numbers the images in another way, so its official lists in ``devkit/*.mat`` are read
    instead. They have no validation images: ``tune`` holds out 815 training images.
    """

    tasks: ClassVar[dict[str, int]] = {"cub": 200, "nabirds": 555, "flowers": 102, "dogs": 120, "cars": 196}
    lists: ClassVar[dict[str, dict[str, str]]] = {
        "tune": {"train": "train", "val": "val", "test": "test"},
        "final": {"train": "trainval", "test": "test"},
    }

    @property
    def folder(self) -> Path:
        """Folder of the dataset."""
        root, (names, _) = self.home, FOLDERS[str(self.task)]
        found = [folder for folder in (root / name for name in names) if folder.is_dir()]
        if found:
            return found[0]
        if not (root / "train.json").is_file() and not (root / "cars_train").is_dir():
            raise FileNotFoundError(f"{root} has no folder {' or '.join(names)}, and no train.json of its own")
        return root

    @property
    def official(self) -> bool:
        """Whether the images are those of the first archive of Cars, which VPT's lists do not name."""
        return self.task == "cars" and not (self.folder / "car_ims").exists() and (self.folder / "cars_train").exists()

    @property
    def published_sizes(self) -> dict[str, int | None]:
        train, val, test = SIZES[str(self.task)]
        return {"train": train, "val": val, "trainval": train + val, "test": test}

    def samples_of(self, name: str) -> Files:
        if self.official:
            return self.official_cars(name)
        if name == "trainval":
            train, val = self.samples_of("train"), self.samples_of("val")
            return Files(train.root, [*train.paths, *val.paths], torch.cat([train.labels, val.labels]).tolist())
        file, ids = self.folder / f"{name}.json", self.ids
        rows = read_json(file)
        unknown = sorted(set(rows.values()) - set(ids))
        if unknown:
            raise ValueError(f"{file} has the class {unknown[0]}, which train.json has not ({len(unknown)} such)")
        label = {number: rank for rank, number in enumerate(ids)}
        samples = listed(
            file, self.folder / FOLDERS[str(self.task)][1], [(path, label[number]) for path, number in rows.items()]
        )
        self.compare(name, file, samples)
        return samples

    @property
    def ids(self) -> list[int]:
        """Class numbers of the training list in order; they have gaps (NABirds: 555 numbers up to 1,010)."""
        file = self.folder / "train.json"
        ids = sorted(set(read_json(file).values()))
        if len(ids) != self.num_classes:
            raise ValueError(f"{file} has {len(ids)} classes, expected {self.num_classes}")
        return ids

    def official_cars(self, name: str) -> Files:
        """Samples of the first archive of Cars by its own lists."""
        part = "test" if name == "test" else "train"
        file = self.folder / f"cars_{part}_annos{'_withlabels' if part == 'test' else ''}.mat"
        if not file.is_file():
            file = self.folder / "devkit" / file.name
        samples = listed(file, self.folder, [(f"cars_{part}/{path}", number - 1) for path, number in read_mat(file)])
        if name in ("train", "val"):
            order = torch.randperm(len(samples.labels), generator=torch.Generator().manual_seed(0)).tolist()
            held = SIZES["cars"][1]
            samples = samples.keep(sorted(order[:held] if name == "val" else order[held:]))
        self.compare(name, file, samples)
        return samples

    def description(self) -> dict[str, Any]:
        return super().description() | {"source": "official" if self.official else "vpt"}


def read_json(file: Path) -> dict[str, int]:
    """Class number of each image path.

    Raises:
        ValueError: If the file is no such object.
    """
    try:
        rows = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is no readable JSON: {error}") from error
    if not isinstance(rows, dict) or not all(type(number) is int for number in rows.values()):
        raise ValueError(f"{file}: expected one object of image paths and class numbers, {{'a/b.jpg': 1, ...}}")
    return {PurePosixPath(path).as_posix(): number for path, number in rows.items()}


def read_mat(file: Path) -> list[tuple[str, int]]:
    """Image name and class number (from 1) of each row of an official list of Cars.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If scipy is not installed.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: cars_train/ without car_ims/ needs the official lists")
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ValueError(f"{file} needs scipy: pip install scipy (or `.[mat]` of this project)") from error
    annotations = loadmat(file, squeeze_me=True)["annotations"]
    return [(str(row["fname"]), int(row["class"])) for row in annotations]
