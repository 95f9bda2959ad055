"""Reader of COCO's JSON of instances."""

import json
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import torch
from PIL import Image

from datamodules.files import read_text
from datamodules.objects import Objects, ObjectSamples, Size, boxes_from_corner
from datamodules.samples import open_image, regular


class Categories(NamedTuple):
    """Classes of a file, in the order of their numbers.

    Args:
        ids: Number of each class in the file; those of COCO have gaps.
        names: Name of each class.
    """

    ids: list[int]
    names: list[str]


class CocoSamples(ObjectSamples):
    """Images of a file of instances.

    Args:
        folder: Folder of the images.
        images: Entries of the images.
        annotations: Entries of the objects of each image, as JSON; text, because a hundred thousand images with their
            polygons as Python objects take gigabytes, in each worker process.
        labels: Class from 1 of each category number.
    """

    def __init__(
        self, folder: Path, images: list[dict[str, Any]], annotations: list[bytes], labels: dict[int, int]
    ) -> None:
        self.folder, self.images, self.annotations, self.labels = folder, images, annotations, labels

    def __len__(self) -> int:
        return len(self.images)

    def target(self, index: int) -> Objects:
        found = json.loads(self.annotations[index])
        shapes = [entry.get("segmentation") for entry in found]
        return Objects(
            boxes_from_corner([entry["bbox"] for entry in found]),
            torch.tensor([self.labels[entry["category_id"]] for entry in found], dtype=torch.long),
            torch.tensor([bool(entry.get("iscrowd")) for entry in found], dtype=torch.bool),
            torch.tensor([float(entry.get("area") or 0) for entry in found], dtype=torch.float32),
            shapes if any(shapes) or not shapes else None,
        )

    def size(self, index: int) -> Size | None:
        image = self.images[index]
        return (image["height"], image["width"]) if "height" in image and "width" in image else None

    def image_id(self, index: int) -> Any:
        return self.images[index]["id"]

    def open(self, index: int) -> Image.Image:
        return open_image(self.folder / self.images[index]["file_name"])

    def content(self, index: int) -> bytes:
        return regular(self.folder / self.images[index]["file_name"]).read_bytes()

    def name(self, index: int) -> str:
        return str(self.folder / self.images[index]["file_name"])

    def keep(self, indices: list[int]) -> "CocoSamples":
        kept = [(self.images[index], self.annotations[index]) for index in indices]
        return CocoSamples(self.folder, [image for image, _ in kept], [entry for _, entry in kept], self.labels)


def read_instances(file: Path, folder: Path) -> tuple[CocoSamples, Categories]:
    """Read the images and objects of a file of instances.

    Args:
        file: The file, with the lists ``images``, ``annotations`` and ``categories``.
        folder: Folder of the images.

    Raises:
        FileNotFoundError: If the file, the folder, or the first or last image is missing.
        ValueError: If the file has another form, or an object is of an image or a class that the file does not list.
    """
    try:
        content = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    names = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in names):
        raise ValueError(f"{file}: expected an object with the lists {', '.join(names)}")
    images, annotations, categories = (content[name] for name in names)
    check_entries(file, "image", images, {"id": int | str, "file_name": str})
    check_entries(file, "category", categories, {"id": int, "name": str})
    check_entries(file, "annotation", annotations, {"image_id": int | str, "category_id": int, "bbox": list})
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder, and {file} has images in it")
    check_paths(file, folder, [image["file_name"] for image in images])
    ordered = sorted(categories, key=lambda category: category["id"])
    found = Categories([category["id"] for category in ordered], [category["name"] for category in ordered])
    return CocoSamples(folder, images, by_image(file, images, annotations, found), labels_of(found)), found


def labels_of(categories: Categories) -> dict[int, int]:
    """Class from 1 of each category number."""
    return {number: label for label, number in enumerate(categories.ids, 1)}


def by_image(file: Path, images: list[Any], annotations: list[Any], categories: Categories) -> list[bytes]:
    """Annotations of each image as JSON.

    Raises:
        ValueError: If one is of an image or a category that is not listed, or its box has not four numbers.
    """
    of_image: dict[Any, list[Any]] = {image["id"]: [] for image in images}
    known = set(categories.ids)
    for entry in annotations:
        name = f"{file}: annotation {entry.get('id', '')}".rstrip()
        if entry["category_id"] not in known:
            listed = ", ".join(map(str, categories.ids[:10])) + (", ..." if len(categories.ids) > 10 else "")
            raise ValueError(f"{name} has the category {entry['category_id']}; the file lists {listed or 'none'}")
        if entry["image_id"] not in of_image:
            raise ValueError(f"{name} is of the image {entry['image_id']}, which the file does not list")
        if len(entry["bbox"]) != 4 or not all(isinstance(value, (int, float)) for value in entry["bbox"]):
            raise ValueError(f"{name} has the box {entry['bbox']}; expected left, top, width and height")
        of_image[entry["image_id"]].append(entry)
    if len(of_image) < len(images):
        raise ValueError(f"{file} has {len(images)} images with {len(of_image)} ids; expected one id for each")
    return [json.dumps(of_image[image["id"]]).encode() for image in images]


def check_entries(file: Path, what: str, entries: list[Any], keys: dict[str, Any]) -> None:
    """Refuse entries of a list that lack a key, or have another type there.

    Raises:
        ValueError: With the first of them.
    """
    if not entries and what != "annotation":
        raise ValueError(f"{file} lists no {what}")
    for place, entry in enumerate(entries):
        for key, kind in keys.items():
            if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
                raise ValueError(f"{file}: {what} {place} of the list has no usable {key}: {str(entry)[:80]}")


def check_paths(file: Path, folder: Path, names: list[str]) -> None:
    """Refuse paths that leave the folder of the images, and a folder without the first or the last image.

    Raises:
        FileNotFoundError: With the missing file.
        ValueError: With the path.
    """
    for name in names:
        if PureWindowsPath(name).anchor or ".." in PureWindowsPath(name).parts:
            raise ValueError(f"{file} names {name!r}, which lies outside {folder}; refused")
    for name in (names[0], names[-1]):  # finds a half-copied archive before anything is decoded
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{file} names {name}, but there is no such file in {folder}")
