"""Micro-scenes: garments of Fashion-MNIST, scaled, coloured and laid over each other on textured ground.

All arithmetic is on integers, so that an image is the same on every machine.
"""

import io
import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

ASSETS = Path(__file__).resolve().parents[2] / "assets/fashion_mnist_1k"
SIZE = 64  # side of a scene in pixels
COUNTS = {"train": 800, "val": 200, "test": 1000}
SOURCES = {"train": "train800", "val": "val200", "test": "test"}  # shipped split of the garments of a split
VISIBLE = 3  # an item hides less than two thirds of what is visible of another one
DARK = 16  # brightness up to which a pixel of a garment shows the ground
DRAWS = 10  # places that are drawn for an item until it hides no other one


class Item(NamedTuple):
    """A visible item of a scene.

    Args:
        label: Number of its class; 0 is the ground.
        mask: Its visible pixels, bool (H, W).
    """

    label: int
    mask: np.ndarray

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, width and height of the visible pixels."""
        rows, columns = (np.flatnonzero(self.mask.any(axis)) for axis in (1, 0))
        left, top = int(columns[0]), int(rows[0])
        return left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1


class Scene(NamedTuple):
    """An image with its items.

    Args:
        image: uint8 pixels (H, W, 3).
        items: Items, from the lowest to the uppermost one.
    """

    image: np.ndarray
    items: list[Item]

    @property
    def classes(self) -> np.ndarray:
        """Class of each pixel, uint8 (H, W)."""
        found = np.zeros((SIZE, SIZE), np.uint8)
        for item in self.items:
            found[item.mask] = item.label
        return found

    @property
    def instances(self) -> np.ndarray:
        """Number of the item at each pixel, from 1, uint8 (H, W); 0 for the ground."""
        found = np.zeros((SIZE, SIZE), np.uint8)
        for number, item in enumerate(self.items, 1):
            found[item.mask] = number
        return found


@cache
def garments(split: str) -> tuple[list[Image.Image], list[int]]:
    """Shipped images (28 x 28, grey) and labels of Fashion-MNIST for a split."""
    from pyarrow import parquet

    rows = parquet.read_table(ASSETS / f"{SOURCES[split]}.parquet").to_pylist()
    return [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows], [row["label"] for row in rows]


def class_names() -> list[str]:
    """Names of the classes: the ground, and those of Fashion-MNIST."""
    from pyarrow import parquet

    metadata = parquet.read_schema(ASSETS / "val200.parquet").metadata[b"huggingface"]
    return ["ground", *json.loads(metadata)["info"]["features"]["label"]["names"]]


def draw(split: str, index: int) -> Scene:
    """One scene; the same at every call.

    Args:
        split: One of ``COUNTS``.
        index: Number of the scene in its split.
    """
    random = np.random.default_rng([64, list(COUNTS).index(split), index])
    image, items = ground(random), list[Item]()
    pictures, labels = garments(split)
    for _ in range(random.integers(2, 6)):
        choice = int(random.integers(len(pictures)))
        side = int(random.integers(18, 41))
        picture = pictures[choice].resize((side, side), Image.Resampling.BICUBIC)
        if random.integers(2):
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels, colour = np.asarray(picture).astype(np.int64), random.integers(90, 256, 3)
        for _ in range(DRAWS):
            x, y = (int(place) for place in random.integers(-side // 4, SIZE - side + side // 4, 2))
            grey = placed(pixels, x, y)
            mask = grey > DARK
            covered = [item._replace(mask=item.mask & ~mask) for item in items]
            hidden = [VISIBLE * now.mask.sum() < item.mask.sum() for now, item in zip(covered, items, strict=True)]
            if not any(hidden) and VISIBLE * mask.sum() > (pixels > DARK).sum():
                items = [*covered, Item(labels[choice] + 1, mask)]
                image = np.where(mask[..., None], grey[..., None] * colour // 255, image)
                break
    return Scene(image.astype(np.uint8), items)


def ground(random: np.random.Generator) -> np.ndarray:
    """Ground (H, W, 3) of one colour with coarse and fine texture."""
    coarse = Image.fromarray(random.integers(0, 256, (9, 9), dtype=np.uint8))
    waves = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC)).astype(np.int64) - 128
    contrast = int(random.integers(20, 90))
    texture = waves * contrast // 128 + random.integers(-10, 11, (SIZE, SIZE))
    return (random.integers(60, 196, 3) + texture[..., None]).clip(0, 255)


def placed(pixels: np.ndarray, x: int, y: int) -> np.ndarray:
    """Brightness (H, W) of a scene with a picture whose upper left corner lies at (x, y), also outside the scene."""
    side = len(pixels)
    whole = np.zeros((SIZE + 2 * side, SIZE + 2 * side), pixels.dtype)
    whole[y + side : y + 2 * side, x + side : x + 2 * side] = pixels
    return whole[side:-side, side:-side]
