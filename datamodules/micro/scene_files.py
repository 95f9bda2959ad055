"""Write micro-scenes as image files with masks of classes and of instances, and as COCO's JSON."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datamodules.micro.scenes import COUNTS, SIZE, Item, Scene, class_names, draw
from datamodules.palette import palette


def build(output: Path) -> None:
    """Write all scenes; the whole folder or nothing.

    The folder has the form of ``SegmentationFolder``, ``instances`` beside it, and boxes in ``annotations/SPLIT.json``.

    Args:
        output: New folder.

    Raises:
        FileExistsError: If the folder exists.
    """
    if output.exists():
        raise FileExistsError(f"output={str(output)!r} exists; remove it, or name another folder")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as temporary:
        root = Path(temporary) / output.name
        root.mkdir()
        (root / "classes.txt").write_text("\n".join(class_names()) + "\n")
        for split, count in COUNTS.items():
            write_split(root, split, count)
            print(f"{split}: {count} scenes")
        root.rename(output)


def write_split(root: Path, split: str, count: int) -> None:
    """Write the scenes of a split below ``root``."""
    for kind in ("images", "masks", "instances"):
        (root / kind / split).mkdir(parents=True)
    scenes = (draw(split, index) for index in range(count))
    images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
    for index, scene in enumerate(scenes):
        name = f"{index:06d}.png"
        write_scene(root, split, name, scene)
        images.append({"id": index, "file_name": name, "height": SIZE, "width": SIZE})
        annotations += [annotation(len(annotations) + i, index, item) for i, item in enumerate(scene.items, 1)]
    categories = [{"id": number, "name": name} for number, name in enumerate(class_names()) if number]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"{split}.json").write_text(json.dumps(content))


def write_scene(root: Path, split: str, name: str, scene: Scene) -> None:
    """Write the image and both masks of a scene as PNG; the masks have a palette."""
    Image.fromarray(scene.image).save(root / "images" / split / name)
    for kind, numbers in {"masks": scene.classes, "instances": scene.instances}.items():
        mask = Image.fromarray(numbers)
        mask.putpalette(palette())
        mask.save(root / kind / split / name)


def annotation(number: int, image: int, item: Item) -> dict[str, Any]:
    """Entry of COCO's JSON for an item."""
    return {
        "id": number,
        "image_id": image,
        "category_id": item.label,
        "bbox": list(item.box),
        "area": int(item.mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": [SIZE, SIZE], "counts": runs(item.mask)},
    }


def runs(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of a mask (H, W), column by column; the first one is of pixels outside it."""
    flat = np.concatenate([[False], mask.flatten(order="F")])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff([0, *ends.tolist(), mask.size]).tolist()
