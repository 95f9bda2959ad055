"""VTAB-1k: 19 datasets of 1,000 training images (Zhai et al., 2019, arXiv:1910.04867), and a small one in its form."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from datamodules.benchmark import Benchmark
from datamodules.files import read_list
from datamodules.image_dataset import ImageDataset, Rows, load
from datamodules.micro import shapes
from datamodules.samples import LabelledSamples
from datamodules.transforms import Resize

if TYPE_CHECKING:
    import datasets

GROUPS = {
    "natural": ("cifar", "caltech101", "dtd", "oxford_flowers102", "oxford_iiit_pet", "svhn", "sun397"),
    "specialized": ("patch_camelyon", "eurosat", "resisc45", "diabetic_retinopathy"),
    "structured": (
        *("clevr_count", "clevr_dist", "dmlab", "kitti"),
        *("dsprites_loc", "dsprites_ori", "smallnorb_azi", "smallnorb_ele"),
    ),
}
CLASSES = (100, 102, 47, 102, 37, 10, 397, 2, 10, 45, 5, 8, 6, 6, 4, 16, 16, 18, 9)
TEST_SIZES = (
    *(10_000, 6_084, 1_880, 6_149, 3_669, 26_032, 21_750),
    *(32_768, 5_400, 6_300, 42_670),
    *(15_000, 15_000, 22_735, 711, 73_728, 73_728, 12_150, 12_150),
)


class VTAB(Benchmark):
    """VTAB-1k in the forms that papers share: 1,000 training images of each of 19 datasets, without TensorFlow.

    Each dataset is a folder of ``root`` in one of two forms. The image dump is ``images/`` with the lists
    ``train800.txt``, ``val200.txt``, ``train800val200.txt`` and ``test.txt``; missing lists of the first two names are
    cut from the third. A dataset of Hugging Face has splits of these names, as parquet files or as ``save_to_disk``
    writes them.

    Args:
        root: Folder of the benchmark.
        task: Name of one of its datasets.
        resize: ``direct`` squashes to the square, as all papers of the benchmark do; ``center_crop`` keeps the aspect
            and crops the centre; ``square_crop`` squashes to a larger square and crops its centre.
    """

    groups: ClassVar[dict[str, tuple[str, ...]]] = GROUPS
    tasks: ClassVar[dict[str, int]] = dict(zip((t for group in GROUPS.values() for t in group), CLASSES, strict=True))
    test_sizes: ClassVar[dict[str, int]] = dict(zip(tasks, TEST_SIZES, strict=True))
    aliases: ClassVar[dict[str, str]] = {
        "cifar100": "cifar",
        "cifar_100": "cifar",
        "flowers102": "oxford_flowers102",
        "pets": "oxford_iiit_pet",
        "oxford_pet": "oxford_iiit_pet",
        "camelyon": "patch_camelyon",
        "retinopathy": "diabetic_retinopathy",
        "clevr_distance": "clevr_dist",
        "dsprites_location": "dsprites_loc",
        "dsprites_orientation": "dsprites_ori",
        "smallnorb_azimuth": "smallnorb_azi",
        "smallnorb_elevation": "smallnorb_ele",
    }
    lists: ClassVar[dict[str, dict[str, str]]] = {
        "tune": {"train": "train800", "val": "val200", "test": "test"},
        "final": {"train": "train800val200", "test": "test"},
    }

    def __init__(
        self,
        root: str,
        task: str | None = None,
        resize: Resize = "direct",
        **kwargs: Any,
    ) -> None:
        super().__init__(root, task, resize=resize, **kwargs)
        self._tables: dict[str, Rows] | None = None

    @property
    def folder(self) -> Path:
        """Folder of the dataset, which some scripts name in another way than the dump."""
        names = [str(self.task), *(alias for alias, task in self.aliases.items() if task == self.task)]
        found = next((self.home / name for name in names if (self.home / name).is_dir()), None)
        if found is None:
            raise FileNotFoundError(f"{self.home} has no folder {self.task}")
        return found

    @property
    def source(self) -> Literal["dump", "hf"]:
        """Form of the images; results keep it, because JPEGs of the dump have cost papers 10 points on CIFAR-100.

        That is the difference between NOAH's numbers and those from TFDS.
        """
        folder = self.folder
        if any((folder / f"{name}.txt").is_file() for name in self.published_sizes):
            return "dump"
        saved = (folder / "dataset_dict.json").is_file() or any(folder.glob("*.parquet"))
        return "hf" if saved or any(folder.glob("data/*.parquet")) else "dump"

    @property
    def published_sizes(self) -> dict[str, int | None]:
        return {"train800": 800, "val200": 200, "train800val200": 1000, "test": self.test_sizes[str(self.task)]}

    def samples_of(self, name: str) -> LabelledSamples:
        cut = {"train800": range(800), "val200": range(800, 1000)}.get(name)
        if cut is not None and not self.has(name) and self.has("train800val200"):
            return self.samples_of("train800val200").keep(list(cut))
        samples: LabelledSamples
        if self.source == "hf":
            place = f"{self.folder}, split {name}"
            if name not in self.tables:
                raise FileNotFoundError(f"{place}: not there, found {', '.join(self.tables)}")
            samples = self.tables[name]
        else:
            place = str(self.folder / f"{name}.txt")
            samples = read_list(self.folder / f"{name}.txt", self.folder)
        count, expected = len(samples.labels), self.published_sizes[name]
        if count != expected and name != "test":
            raise ValueError(f"{place}: {count} images, expected {expected}")
        self.compare(name, place, samples)
        return samples

    def has(self, name: str) -> bool:
        """Whether there is a list of this name."""
        return name in self.tables if self.source == "hf" else (self.folder / f"{name}.txt").is_file()

    @property
    def tables(self) -> dict[str, Rows]:
        """Samples of every split of a dataset of Hugging Face."""
        if self._tables is None:
            reader = ImageDataset(str(self.folder))
            tables: dict[str, datasets.Dataset] = reader.with_columns(load(reader.root, set()))
            columns = (reader.image_column or "", reader.label_column or "")
            self._tables = {name: Rows(table, *columns) for name, table in tables.items()}
        return self._tables

    @property
    def group(self) -> str:
        """Group of the dataset; papers report the mean of each group, and the mean of the groups."""
        return next(name for name, tasks in self.groups.items() if self.task in tasks)

    def description(self) -> dict[str, Any]:
        return super().description() | {"source": self.source, "group": self.group}


class MicroVTAB(VTAB):
    """Small suite in the form of VTAB-1k, for machines without its images; ``prepare --dataset micro_vtab`` writes it.

    Images of 32 x 32 pixels in three groups: Fashion-MNIST, scanned digits, and four drawn datasets
    (``micro/shapes.py``).
    """

    groups: ClassVar[dict[str, tuple[str, ...]]] = {
        "natural": ("fashion_mnist",),
        "specialized": ("digits",),
        "structured": tuple(shapes.CLASSES),
    }
    tasks: ClassVar[dict[str, int]] = {"fashion_mnist": 10, "digits": 10, **shapes.CLASSES}
    test_sizes: ClassVar[dict[str, int]] = {"fashion_mnist": 1000, "digits": 797, **dict.fromkeys(shapes.CLASSES, 1000)}
    aliases: ClassVar[dict[str, str]] = {}
