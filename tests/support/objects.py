"""Small images with objects, for detection."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 7, "name": "red"}, {"id": 3, "name": "green"}]  # ids with gaps and without an order, as in COCO


def write_objects(
    root: Path, counts: dict[str, int], sizes: tuple[tuple[int, int], ...] = ((32, 48), (40, 32))
) -> None:
    """Write noise with a square of each of two colours, and their boxes and polygons as COCO's JSON.

    Args:
        root: New folder.
        counts: Number of images of each split.
        sizes: Heights and widths of the images, by turns.
    """
    (root / "annotations").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for split, count in counts.items():
        (root / "images" / split).mkdir(parents=True)
        images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
        for number in range(count):
            height, width = sizes[number % len(sizes)]
            pixels = draw.integers(0, 80, (height, width, 3), dtype=np.uint8)
            images.append({"id": 100 + number, "file_name": f"{number}.png", "height": height, "width": width})
            for place, category in enumerate(CATEGORIES):
                side = int(draw.integers(12, 16))
                y, x = (int(draw.integers(0, length - side)) for length in (height, width // 2))
                x += place * (width // 2) - (place and side // 4)
                pixels[y : y + side, x : x + side, place] = 230
                annotations.append(
                    {
                        "id": len(annotations),
                        "image_id": 100 + number,
                        "category_id": category["id"],
                        "bbox": [x, y, side, side],
                        "area": side * side,
                        "iscrowd": 0,
                        "segmentation": [[x, y, x + side, y, x + side, y + side, x, y + side]],
                    }
                )
            Image.fromarray(pixels).save(root / "images" / split / f"{number}.png")
        write_json(root, split, {"images": images, "annotations": annotations, "categories": CATEGORIES})


def read_json(root: Path, split: str = "train") -> dict[str, Any]:
    """Content of the file of a split."""
    return json.loads((root / "annotations" / f"{split}.json").read_text())


def write_json(root: Path, split: str, content: dict[str, Any]) -> None:
    """Write the file of a split."""
    (root / "annotations" / f"{split}.json").write_text(json.dumps(content))
