"""Small images with masks, for segmentation."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ground", "red", "green", "blue")


def write_scenes(root: Path, counts: dict[str, int], size: tuple[int, int] = (32, 32)) -> None:
    """Write noise with a rectangle of each colour, its masks and the list of classes.

    Args:
        root: New folder.
        counts: Number of images of each split.
        size: Height and width of the images.
    """
    root.mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    draw = np.random.default_rng(0)
    for split, count in counts.items():
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for number in range(count):
            pixels = draw.integers(0, 80, (*size, 3), dtype=np.uint8)
            mask = np.zeros(size, np.uint8)
            for colour in range(3):
                y, x = draw.integers(0, size[0] // 2), draw.integers(0, size[1] // 2)
                place = (slice(y, y + size[0] // 2), slice(x, x + size[1] // 2))
                pixels[place] = 40
                pixels[(*place, colour)] = 220
                mask[place] = colour + 1
            Image.fromarray(pixels).save(root / "images" / split / f"{number}.png")
            Image.fromarray(mask).save(root / "masks" / split / f"{number}.png")


def write_pairs(images: Path, masks: Path, values: dict[str, np.ndarray]) -> None:
    """Write a JPEG image of noise for each mask, and the mask as PNG; the same noise for the same name.

    Args:
        images: New or existing folder of the images.
        masks: Folder of the masks.
        values: Pixels of each mask by its name, uint8 (H, W) or (H, W, 3).
    """
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    for name, mask in values.items():
        draw = np.random.default_rng(list(name.encode()))
        Image.fromarray(draw.integers(0, 256, (*mask.shape[:2], 3), dtype=np.uint8)).save(images / f"{name}.jpg")
        Image.fromarray(mask).save(masks / f"{name}.png")
