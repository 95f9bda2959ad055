"""Check of images with objects."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from rich.table import Table
from tqdm import tqdm

from commands.check_data.masks import leaks
from datamodules.detection_images import DetectionImages
from datamodules.object_checks import notes, upright_size
from datamodules.objects import ObjectSamples, flaw, learnable, masks_of

COLUMNS = ("split", "images", "expected", "objects", "classes", "crowds", "without", "mean size", "")


class Read(NamedTuple):
    """Facts about an image with its objects."""

    labels: list[int]
    size: tuple[int, int] = (0, 0)
    learned: int = 0
    shapes: bool = False
    error: str = ""


def check_objects(data: DetectionImages) -> tuple[Table, list[str]]:
    """Read every image, box and mask of every split.

    Returns:
        A table with a row for each split, and the mistakes.
    """
    table = Table(title=f"{type(data).__name__} in {getattr(data, 'root', '')}", title_justify="left")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("split", "") else "right")
    wrong, found = list[str](), dict[str, ObjectSamples]()
    for split in ("train", "val", "test"):
        try:
            samples = data.samples(split)
        except (OSError, ValueError) as error:
            wrong.append(f"{split}: {error}")
            table.add_row(split, *[""] * (len(COLUMNS) - 2), "wrong")
            continue
        if samples is not None:
            found[split] = samples
            wrong += check_split(data, split, samples, table)
    return table, wrong + leaks(found)


def check_split(data: DetectionImages, split: str, samples: ObjectSamples, table: Table) -> list[str]:
    """Add the row of a split; returns its mistakes."""
    counts = Counter[str]()

    def look(index: int) -> Read:
        try:
            size = upright_size(samples, index, decode=True)
            objects = samples.target(index)
            reason = flaw(objects, size, masks=False)
            if reason:
                raise ValueError(reason)
            whole = objects.shapes is not None and all(objects.shapes)
            if whole:
                masks_of(objects.shapes or [], size)
            return Read(objects.labels.tolist(), size, len(learnable(objects, size).labels), whole)
        except (OSError, ValueError) as error:
            return Read([], error=f"{samples.name(index)} ({error})")

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as threads:
        indices = range(len(samples))
        images = list(tqdm(threads.map(look, indices), desc=split, total=len(indices), leave=False, disable=None))
    broken = [image.error for image in images if image.error]
    usable = [(index, image) for index, image in enumerate(images) if not image.error]
    for index, image in usable:  # here, because the threads would count at once
        objects = samples.target(index)
        learnable(objects, image.size, counts)
        counts["objects"] += len(objects.labels)
        counts["crowd images"] += bool(len(objects.labels)) and bool(objects.crowd.all())
    without = sum(not image.learned for _, image in usable)
    present = {label for _, image in usable for label in image.labels}
    height, width = (
        sum(side) / max(len(usable), 1) for side in zip(*[i.size for _, i in usable] or [(0, 0)], strict=True)
    )
    expected = data.expected(split)
    known = "" if expected is None else f"{expected:,}"
    other_length = expected not in (None, len(samples))
    cells = f"{counts['objects']:,}", f"{len(present)} of {data.num_classes}", f"{counts['crowds']:,}", f"{without:,}"
    end = "wrong" if broken or other_length else ""
    table.add_row(split, f"{len(samples):,}", known, *cells, f"{width:.0f} x {height:.0f}", end)
    for note in notes(counts, len(usable), without, split == "train"):
        print(f"note: {split}: {note}")
    boxes_alone = sum(not image.shapes for _, image in usable)
    if boxes_alone:
        print(
            f"note: {split}: {boxes_alone} of {len(usable)} images have objects without a shape: pass --model.head "
            "faster_rcnn"
        )
    wrong = [f"{split}: {len(samples):,} images, expected {known}"] if other_length else []
    if broken:
        wrong.append(f"{split}: {len(broken):,} of {len(samples):,} images cannot be used, first {broken[0]}")
    if not broken and without == len(samples):
        wrong.append(f"{split}: no image has an object to learn from")
    return wrong
