"""Images from a folder of class folders, parquet files, a saved dataset or the Hugging Face hub."""

import glob
import io
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image
from torch import Tensor

from datamodules.base import Split
from datamodules.files import neighbours
from datamodules.folds import check_fold, cut
from datamodules.labelled_images import LabelledImages
from datamodules.samples import IMAGE_SUFFIXES, Labelled, LabelledSamples, open_image, regular

if TYPE_CHECKING:
    # every function that needs it imports it, because the import takes a second that `--help` can do without
    import datasets

ALIASES = {
    "train": ("train", "training"),
    "val": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


class ImageDataset(LabelledImages):
    """Labelled images in the usual forms: class folders, parquet files, a saved dataset, a dataset of the hub.

    Args:
        root: A folder of ``train/<class>/*.jpg`` (or only ``<class>/*.jpg``), a folder of parquet files named after
            their split, a ``save_to_disk`` folder, or the id of a dataset on the Hugging Face hub.
        train_split: Name of the split to train on; found by its usual names if not given.
        val_split: Name of the validation split; ``none`` to train without one.
        test_split: Name of the test split.
        val_fraction: Share of the training images held out (by class, always the same ones) if there is no
            validation split.
        folds: Number of parts of the training images, each with its share of each class, always the same ones. The part
            ``fold`` is tested, the others train, and the last epoch counts; validation and test images of the data are
            left out.
        fold: Number of the part that is tested, from 0.
        image_column: Name of the image column; found by its type if not given.
        label_column: Name of the label column; found by its type if not given.
    """

    kind: ClassVar[str] = "Image"  # type of the column of inputs in ``datasets``
    usual: ClassVar[tuple[str, ...]] = ("image", "img")  # usual names of this column

    def __init__(
        self,
        root: str,
        train_split: str | None = None,
        val_split: str | None = None,
        test_split: str | None = None,
        val_fraction: float = 0.1,
        image_column: str | None = None,
        label_column: str | None = None,
        folds: int | None = None,
        fold: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_fold(folds, fold)
        if not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction={val_fraction}: expected a share between 0 and 1")
        self.root = root
        self.split_names = {"train": train_split, "val": val_split, "test": test_split}
        self.val_fraction, self.folds, self.fold = val_fraction, folds, fold
        self.image_column = image_column
        self.label_column = label_column
        self._tables: dict[str, datasets.Dataset] | None = None

    @property
    def tables(self) -> "dict[str, datasets.Dataset]":
        """Dataset of every split that was found, with undecoded images and integer labels."""
        if self._tables is None:
            self._tables = self.read()
        return self._tables

    @property
    def class_names(self) -> list[str]:
        return list(next(iter(self.tables.values())).features[self.label_column].names)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def read(self) -> "dict[str, datasets.Dataset]":
        """Find the splits by their names, and hold out validation images if there are none."""
        tables = self.load({name for name in self.split_names.values() if name})
        found = {}
        for split, name in self.split_names.items():
            if name is not None and name not in tables and name != "none":
                raise ValueError(f"data.{split}_split={name!r}: {self.root} has the splits {', '.join(tables)}")
            name = name or next((key for key in tables if key.lower() in ALIASES[split]), None)
            if name is not None and name != "none":
                found[split] = tables[name]
        if "train" not in found and len(tables) == 1 and not found:
            found["train"] = next(iter(tables.values()))
        if not found:
            raise ValueError(f"{self.root} has no train split: found {', '.join(tables)}. Pass --data.train_split NAME")
        found = self.with_columns(found)
        if self.folds is not None and self.fold is not None:
            return cut(found["train"], self.label_column or "", self.folds, self.fold)
        if "train" in found and "val" not in found and self.split_names["val"] != "none":
            found |= self.hold_out(found["train"])
        return found

    def load(self, asked: set[str]) -> "dict[str, datasets.Dataset]":
        """Tables by the name of their split; those of ``asked`` are names of splits beside the usual ones."""
        return load(self.root, asked)

    def with_columns(self, tables: "dict[str, datasets.Dataset]") -> "dict[str, datasets.Dataset]":
        """Find the two columns, encode the labels and leave the images undecoded."""
        import datasets

        features = next(iter(tables.values())).features
        self.image_column = self.image_column or column(features, self.kind, self.usual, self.root)
        self.label_column = self.label_column or column(features, "ClassLabel", ("label", "labels"), self.root)
        for name in (self.image_column, self.label_column):
            if name not in features:
                raise ValueError(f"{self.root} has no column {name!r}: found {', '.join(features)}")
        label = features[self.label_column]
        if not isinstance(label, datasets.ClassLabel):  # plain values: a class of any split is a class of all
            values = sorted({v for t in tables.values() for v in t.unique(self.label_column) if v is not None})
            if all(isinstance(value, int) for value in values):
                values = list(range(max(values) + 1))
            label = datasets.ClassLabel(names=[str(value) for value in values])
            names = {value: index for index, value in enumerate(values)}
            encode = {name: [names.get(v, -1) for v in table[self.label_column]] for name, table in tables.items()}
            tables = {
                name: table.remove_columns(self.label_column).add_column(self.label_column, encode[name])
                for name, table in tables.items()
            }
            tables = {name: table.cast_column(self.label_column, label) for name, table in tables.items()}
        undecoded = getattr(datasets, self.kind)(decode=False)
        return {name: table.cast_column(self.image_column, undecoded) for name, table in tables.items()}

    def hold_out(self, train: "datasets.Dataset") -> "dict[str, datasets.Dataset]":
        """Cut a share of the images of every class from the training split, always the same ones."""
        labels = Rows(train, self.image_column or "", self.label_column or "").labels
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        held: set[int] = set()
        for label in labels.unique():
            rows = order[labels[order] == label].tolist()
            count = max(round(len(rows) * self.val_fraction), 1)
            held.update(rows[: min(count, len(rows) - 1)])  # the only image of a class stays a training image
        kept = [index for index in range(len(labels)) if index not in held]
        return {"train": train.select(kept), "val": train.select(sorted(held))}

    def description(self) -> dict[str, Any]:
        return super().description() | ({"fold": f"{self.fold} of {self.folds}"} if self.folds else {})

    def samples(self, split: Split) -> Labelled | None:
        if split not in self.tables:
            return None
        return Rows(self.tables[split], self.image_column or "", self.label_column or "")


class Rows(LabelledSamples):
    """Samples that are rows of a Hugging Face dataset.

    Args:
        table: The dataset, with undecoded images and integer labels.
        image_column: Name of the column of images.
        label_column: Name of the column of labels.
    """

    def __init__(self, table: "datasets.Dataset", image_column: str, label_column: str) -> None:
        self.table = table
        self.image_column = image_column
        self.label_column = label_column
        # a missing label becomes one outside the classes
        labels = [-1 if label is None else label for label in table[label_column][:]]
        self.labels: Tensor = torch.tensor(labels, dtype=torch.long)

    def open(self, index: int) -> Image.Image:
        image = self.table[index][self.image_column]
        return open_image(io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"])

    def content(self, index: int) -> bytes:
        image = self.table[index][self.image_column]
        return image["bytes"] if image["bytes"] is not None else regular(image["path"]).read_bytes()

    def name(self, index: int) -> str:
        path = self.table[index][self.image_column]["path"]
        return path or f"row {index}"

    def keep(self, indices: list[int]) -> "Rows":
        return Rows(self.table.select(indices), self.image_column, self.label_column)


def load(root: str, asked: set[str]) -> "dict[str, datasets.Dataset]":
    """Tables of a folder or of a hub id, by the name of their split.

    Args:
        root: Folder or hub id.
        asked: Names of splits beside the usual ones.

    Raises:
        FileNotFoundError: If there is no such folder and no such dataset.
        ValueError: If the folder holds nothing that can be read.
    """
    import datasets
    from pyarrow import parquet

    if not root.strip():  # otherwise the folder from which the command was started
        raise ValueError(f"data.root={root!r}: expected a folder or the name of a dataset of the hub")
    path = Path(root).expanduser()
    if path.is_file():
        raise ValueError(f"data.root={root!r} is a file; expected the folder that it lies in")
    if not path.exists():
        near = neighbours(path)
        if near:
            raise FileNotFoundError(f"data.root={root!r}: no such folder. Nearest: {', '.join(near)}")
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", root) or root.startswith("."):
            raise FileNotFoundError(f"data.root={root!r}: no such folder")
        try:
            return dict(datasets.load_dataset(root))
        except Exception as error:  # datasets has kinds of its own for a missing name, no network, a gated set
            reason = str(error).partition("\n")[0]
            raise FileNotFoundError(
                f"data.root={root!r}: no such folder, and the hub did not give it: {reason}"
            ) from error
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        saved = datasets.load_from_disk(str(path))
        return dict(saved) if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    files = defaultdict(list)
    for file in sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")]):
        try:
            rows = parquet.read_metadata(file).num_rows
        except ValueError as error:  # pyarrow's own kind is a subclass
            raise ValueError(f"{file} ({file.stat().st_size} bytes) is no readable parquet file: {error}") from error
        if not rows:
            raise ValueError(f"{file} holds no rows: leave it out, or write its split anew")
        files[re.sub(r"-\d+-of-\d+.*", "", file.stem)].append(glob.escape(str(file)))
    if files:
        return dict(datasets.load_dataset("parquet", data_files=dict(files)))
    if any(path.glob("metadata.*")) or any(path.glob("*/metadata.*")):  # labels stand in a table beside the images
        return dict(datasets.load_dataset("imagefolder", data_dir=glob.escape(str(path))))
    return class_folders(path, asked)


def class_folders(root: Path, asked: set[str]) -> "dict[str, datasets.Dataset]":
    """Tables of class folders, which lie in the folders of splits or directly in the root.

    Only a folder of class folders can be a split. The reader of ``datasets`` is not used, because it takes every path
    with the word "test" for a test split (images of a class ``crash test`` would leave the training split), and because
    it skips linked folders.
    """
    import datasets

    def folders(folder: Path) -> list[Path]:
        return [f for f in sorted(folder.iterdir()) if f.is_dir() and not f.name.startswith((".", "__"))]

    def files(folder: Path) -> list[Path]:
        found = [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in IMAGE_SUFFIXES]
        return [f for f in found if not any(part.startswith(".") for part in f.relative_to(folder).parts)]

    usual = {alias for aliases in ALIASES.values() for alias in aliases}
    splits = {f.name: f for f in folders(root) if (f.name in asked or f.name.lower() in usual) and folders(f)}
    images = {
        split: [(str(file), labelled.name) for labelled in folders(folder) for file in files(labelled)]
        for split, folder in (splits or {"train": root}).items()
    }
    names = sorted({name for rows in images.values() for _, name in rows})
    if not names or all(name.lower() in usual for name in names):
        raise ValueError(f"data.root={str(root)!r} holds no class folders of images, parquet files or saved dataset")
    empty = [f for folder in (splits or {"train": root}).values() for f in folders(folder) if not files(f)]
    if empty:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        rank_zero_info(f"note: {len(empty)} class folders hold no image, first {empty[0]}; read are {kinds}")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    return {
        split: datasets.Dataset.from_dict(
            {"image": [file for file, _ in rows], "label": [name for _, name in rows]}, features=features
        )
        for split, rows in images.items()
    }


def column(features: "datasets.Features", kind: str, names: tuple[str, ...], root: str) -> str:
    """Name of the only column of a type, or of one with a usual name.

    Raises:
        ValueError: If there is no such column.
    """
    typed = [name for name, feature in features.items() if type(feature).__name__ == kind]
    if len(typed) == 1:
        return typed[0]
    for name in names:
        if name in features:
            return name
    option = "label" if kind == "ClassLabel" else kind.lower()
    raise ValueError(f"{root}: which column is the {option}? Found {', '.join(features)}; pass --data.{option}_column")
