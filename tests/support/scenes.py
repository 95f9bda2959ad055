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
