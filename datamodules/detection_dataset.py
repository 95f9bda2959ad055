"""Images with objects from parquet files, a saved dataset or the Hugging Face hub."""

import io
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image

from datamodules.base import Split
from datamodules.detection_images import DetectionImages
from datamodules.image_dataset import ALIASES, column, load
from datamodules.objects import Objects, ObjectSamples, boxes_from_corner
from datamodules.samples import open_image, regular

if TYPE_CHECKING:
    import datasets  # every function that needs it imports it, because the import takes a second

BoxFormat = Literal["xywh", "xyxy"]


class DetectionDataset(DetectionImages):
    """Tables with a column of images and a column of objects, as datasets of the Hugging Face hub have them.

    The objects of an image have ``bbox``, four numbers in pixels, and ``category``, a class; they may have ``area``,
    ``iscrowd`` and ``segmentation`` as in COCO.

    Args:
        root: A folder of parquet files named after their split, a ``save_to_disk`` folder, or the id of a dataset on
            the Hugging Face hub.
        train_split: Name of the split to train on; found by its usual names if not given.
        val_split: Name of the validation split; without one the last epoch counts. ``none`` to train without one.
        test_split: Name of the test split.
        image_column: Name of the image column; found by its type if not given.
        objects_column: Name of the column of objects.
        box_format: Numbers of a box. ``xywh``: left, top, width and height, as in COCO. ``xyxy``: left, top, right and
            bottom.
    """

    def __init__(
        self,
        root: str,
        train_split: str | None = None,
        val_split: str | None = None,
        test_split: str | None = None,
        image_column: str | None = None,
        objects_column: str = "objects",
        box_format: BoxFormat = "xywh",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root, self.box_format = root, box_format
        self.split_names = {"train": train_split, "val": val_split, "test": test_split}
        self.image_column, self.objects_column = image_column, objects_column
        self.found: dict[str, ObjectRows] = {}
        self.names: list[str] = []

    def read(self) -> None:
        """Find the splits by their names, and the classes.

        Raises:
            ValueError: If there is no such split or column, or the objects have another form.
        """
        import datasets

        tables = load(self.root, {name for name in self.split_names.values() if name})
        chosen = {}
        for split, name in self.split_names.items():
            if name not in (None, "none", *tables):
                raise ValueError(f"data.{split}_split={name!r}: {self.root} has the splits {', '.join(tables)}")
            name = name or next((key for key in tables if key.lower() in ALIASES[split]), None)
            if name in tables:
                chosen[split] = tables[name]
        if not chosen:
            raise ValueError(f"{self.root} has no train split: found {', '.join(tables)}. Pass --data.train_split NAME")
        features = next(iter(chosen.values())).features
        image = self.image_column or column(features, "Image", ("image", "img"), self.root)
        for name in (image, self.objects_column):
            if name not in features:
                raise ValueError(
                    f"{self.root} has no column {name!r}: found {', '.join(features)}; pass --data.image_column and "
                    "--data.objects_column"
                )
        undecoded = datasets.Image(decode=False)
        chosen = {split: table.cast_column(image, undecoded) for split, table in chosen.items()}
        categories, self.names = classes_of(chosen, self.objects_column)
        columns = (image, self.objects_column, self.box_format)
        self.found = {split: ObjectRows(table, columns, categories) for split, table in chosen.items()}

    @property
    def class_names(self) -> list[str]:
        if not self.found:
            self.read()
        return self.names

    def samples(self, split: Split) -> "ObjectRows | None":
        if not self.found:
            self.read()
        return self.found.get(split)


class ObjectRows(ObjectSamples):
    """Samples that are rows of a Hugging Face dataset.

    Args:
        table: The dataset, with undecoded images.
        columns: Columns of images and of objects, and the format of a box.
        categories: Class from 1 of each value of ``category``.
    """

    def __init__(
        self, table: "datasets.Dataset", columns: tuple[str, str, BoxFormat], categories: dict[Any, int]
    ) -> None:
        self.table, self.columns, self.categories = table, columns, categories

    def __len__(self) -> int:
        return len(self.table)

    def target(self, index: int) -> Objects:
        objects = as_lists(self.table[index][self.columns[1]])
        values, boxes = objects.get("category") or [], objects.get("bbox") or []
        if len(values) != len(boxes) or not all(len(box) == 4 for box in boxes):
            raise ValueError(f"{len(boxes)} boxes and {len(values)} classes; expected a box of four numbers for each")
        unknown = next((value for value in values if value not in self.categories), None)
        if unknown is not None or None in values:
            raise ValueError(f"an object has the class {unknown}; known are {len(self.categories)}")
        corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        shapes = objects.get("segmentation")
        return Objects(
            boxes_from_corner(boxes) if self.columns[2] == "xywh" else corners,
            torch.tensor([self.categories[value] for value in values], dtype=torch.long),
            torch.tensor([bool(value) for value in objects.get("iscrowd") or [0] * len(values)], dtype=torch.bool),
            torch.tensor([float(value or 0) for value in objects.get("area") or [0] * len(values)]),
            shapes if shapes and any(shapes) else None if values else [],
        )

    def image_id(self, index: int) -> Any:
        return self.table[index].get("image_id", index)

    def open(self, index: int) -> Image.Image:
        image = self.table[index][self.columns[0]]
        return open_image(io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"])

    def content(self, index: int) -> bytes:
        image = self.table[index][self.columns[0]]
        return image["bytes"] if image["bytes"] is not None else regular(image["path"]).read_bytes()

    def name(self, index: int) -> str:
        return self.table[index][self.columns[0]]["path"] or f"row {index}"

    def keep(self, indices: list[int]) -> "ObjectRows":
        return ObjectRows(self.table.select(indices), self.columns, self.categories)


def as_lists(objects: Any) -> dict[str, list[Any]]:
    """Objects of a row as one list for each of their values: tables have them so, or as a list of objects."""
    if isinstance(objects, dict):
        return {name: list(values) for name, values in objects.items() if values is not None}
    rows = objects or []
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}


def classes_of(tables: "dict[str, datasets.Dataset]", name: str) -> tuple[dict[Any, int], list[str]]:
    """Class from 1 of each value of ``category``, and the names of the classes.

    They are those of the column's type; of a column of plain values, the values of all splits in ascending order.

    Raises:
        ValueError: If objects have no ``bbox`` and ``category``.
    """
    feature: Any = next(iter(tables.values())).features[name]
    parts = getattr(feature, "feature", feature)  # a list of objects, or an object of lists
    parts = parts[0] if isinstance(parts, list) else parts
    if not isinstance(parts, dict) or not {"bbox", "category"} <= parts.keys():
        found = ", ".join(parts) if isinstance(parts, dict) else str(parts)
        raise ValueError(f"column {name!r}: expected objects with bbox and category, found {found}")
    label = getattr(parts["category"], "feature", parts["category"])
    names = getattr(label, "names", None)
    if names is not None:
        return {number: number + 1 for number in range(len(names))}, list(names)
    rows = (as_lists(row).get("category", []) for table in tables.values() for row in table[name])
    values = sorted({value for row in rows for value in row if value is not None}, key=str)
    if all(isinstance(value, int) for value in values):
        values = sorted(values)
    return {value: number for number, value in enumerate(values, 1)}, [str(value) for value in values]
