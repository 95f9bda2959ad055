"""Objects in images as stored: boxes, classes and shapes, their checks, and their masks."""

import math
from abc import abstractmethod
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from datamodules.samples import ImageSamples
from lightning_modules.average_precision import mask_library

Size = tuple[int, int]  # height and width in pixels, (H, W)


class Objects(NamedTuple):
    """Objects of an image.

    Args:
        boxes: Left, top, right and bottom in pixels of the file, fp32 (n, 4).
        labels: Number of the class from 1, int64 (n,).
        crowd: Whether it is a region of many objects, bool (n,). A detector does not learn it, and an evaluation
            ignores boxes in it.
        area: Pixels of the object, fp32 (n,), by which COCO groups sizes; 0 for those of its mask or box.
        shapes: Polygons or runs of each in the form of COCO; None if there are boxes alone.
    """

    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    area: Tensor
    shapes: list[Any] | None

    def keep(self, which: Tensor) -> "Objects":
        """Objects at which a mask (n,) is true."""
        places = which.nonzero().flatten().tolist()
        shapes = None if self.shapes is None else [self.shapes[place] for place in places]
        return Objects(self.boxes[which], self.labels[which], self.crowd[which], self.area[which], shapes)


class ObjectSamples(ImageSamples):
    """Images with their objects."""

    @abstractmethod
    def target(self, index: int) -> Objects:
        """Objects of an image as stored."""

    @abstractmethod
    def image_id(self, index: int) -> Any:
        """Number or name of an image in files of predictions."""

    def size(self, index: int) -> Size | None:
        """Size of an image by its annotations, if they have it."""
        return None

    @abstractmethod
    def keep(self, indices: list[int]) -> "ObjectSamples": ...

    def stored(self, index: int) -> bytes:
        found, content = self.target(index), self.content(index)
        plain = [found.boxes.tolist(), found.labels.tolist(), found.crowd.tolist(), found.area.tolist(), found.shapes]
        return f"{plain} {len(content)} ".encode() + content


def boxes_from_corner(corners: Any) -> Tensor:
    """Left, top, right and bottom (n, 4) of boxes as left, top, width and height."""
    found = torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)
    return torch.cat([found[:, :2], found[:, :2] + found[:, 2:]], dim=1)


def flaw(objects: Objects, size: Size, masks: bool) -> str:
    """Reason why the objects of an image cannot be used; empty if they can.

    Args:
        objects: The objects.
        size: Height and width of the image.
        masks: Whether masks are read.
    """
    height, width = size
    left, top, right, bottom = objects.boxes.unbind(1)
    for wrong, what in (
        (~objects.boxes.isfinite().all(1), "is not finite"),
        ((right < left) | (bottom < top), "has a negative side"),
        (
            (left >= width) | (top >= height) | (right <= 0) | (bottom <= 0),
            f"lies outside {width} x {height} pixels",
        ),
    ):
        if wrong.any():
            return f"its box {shown(objects.boxes[wrong][0])} (left, top, right, bottom) {what}"
    if masks and (objects.shapes is None or not all(objects.shapes)):
        return "it has objects without a shape, and the head learns masks: pass --model.head faster_rcnn"
    return ""


def shown(box: Tensor) -> str:
    """Coordinates of a box for a message."""
    return "[" + ", ".join(f"{value:g}" for value in box.tolist()) + "]"


def learnable(objects: Objects, size: Size, counts: Counter[str] | None = None) -> Objects:
    """Objects that a detector learns from, cut at the borders of the image: no crowds, and no side of at most 1 pixel.

    Args:
        objects: The objects.
        size: Height and width of the image.
        counts: Counts what is cut (``cut``) or left out (``crowds``, ``thin``).
    """
    boxes = clip_boxes_to_image(objects.boxes, size)
    thin = ((boxes[:, 2:] - boxes[:, :2]) <= 1).any(1) & ~objects.crowd
    if counts is not None:
        counts["cut"] += int(((boxes - objects.boxes).abs() > 1).any(1).sum())
        counts["crowds"] += int(objects.crowd.sum())
        counts["thin"] += int(thin.sum())
    return objects._replace(boxes=boxes).keep(~thin & ~objects.crowd)


def masks_of(shapes: list[Any], size: Size) -> Tensor:
    """Masks (n, H, W), uint8, of shapes in the form of COCO: polygons, runs, or runs in compressed form.

    Raises:
        ValueError: If a shape has another form, or is of an image of another size.
    """
    height, width = size
    library = mask_library()
    masks = torch.zeros(len(shapes), height, width, dtype=torch.uint8)
    for mask, shape in zip(masks, shapes, strict=True):
        runs = isinstance(shape, dict)
        if runs and [*shape.get("size", [])] != [height, width]:
            raise ValueError(f"a mask has the size {shape.get('size')}; expected [{height}, {width}], height and width")
        if runs and isinstance(shape["counts"], list) and sum(shape["counts"]) != height * width:
            raise ValueError(f"the runs of a mask have {sum(shape['counts'])} pixels; expected {height * width}")
        if not runs and not (isinstance(shape, list) and all(is_polygon(part) for part in shape)):
            raise ValueError(f"a shape is {str(shape)[:60]}; expected polygons of at least 3 points, or runs")
        mask |= torch.from_numpy(np.ascontiguousarray(library.decode(library.segmToRle(shape, width, height))))
    return masks


def is_polygon(part: Any) -> bool:
    """Whether a part of a shape is a list of at least three points x, y, ..."""
    numbers = isinstance(part, list) and all(isinstance(v, (int, float)) and math.isfinite(v) for v in part)
    return numbers and len(part) >= 6 and len(part) % 2 == 0
