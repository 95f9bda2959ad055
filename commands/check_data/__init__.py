"""Compare a benchmark on disk with its published lists, sizes and classes."""

import copy
import hashlib
import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from commands.check_data.clips import check_clips
from commands.check_data.masks import check_masks
from commands.check_data.objects import check_objects
from datamodules.detection_images import DetectionImages
from datamodules.image_module import ImageModule
from datamodules.overlap import leak
from datamodules.samples import LabelledSamples, open_image
from datamodules.segmentation_images import SegmentationImages
from datamodules.video_module import VideoModule

CHECKS: dict[type[ImageModule], Callable[[Any], tuple[Table, list[str]]]] = {
    DetectionImages: check_objects,
    SegmentationImages: check_masks,
    VideoModule: check_clips,
}
"""What reads the files of a kind of datamodule; returns a table and the mistakes. Others hold images with labels."""

MOST = 100_000  # of a longer list, evenly chosen images are read


class Read(NamedTuple):
    """Facts about an image file."""

    name: str
    digest: bytes = b""
    size: tuple[int, int] = (0, 0)
    error: str = ""


def check_data(data: ImageModule) -> None:
    """Read every list of a benchmark, of all its tasks if none is named, and print its content and its mistakes.

    Ends with exit code 1 if lists, images, masks or videos are missing or broken, a list has not its published length,
    a label is outside the classes, or images of the training list are in the test list.

    Args:
        data: The benchmark, as a fit would get it: ``--data VTAB --data.root DIR``.
    """
    checks = [check for kind, check in CHECKS.items() if isinstance(data, kind)]
    table, wrong = (checks or [check_lists])[0](data)
    Console(width=140).print(table)
    for message in wrong:
        print(f"- {message}")
    if wrong:
        raise ValueError(f"{len(wrong)} problems, listed above")
    print("all there")


def check_lists(data: ImageModule) -> tuple[Table, list[str]]:
    """Read every list of labelled images.

    Returns:
        A table with a row for each list, and the mistakes.
    """
    tasks = getattr(data, "tasks", {})
    named = [data.task] if getattr(data, "task", None) else list(tasks)  # type: ignore[attr-defined]
    table = Table(title=f"{type(data).__name__} in {getattr(data, 'root', '')}", title_justify="left")
    for name in ("task", "list", "images", "expected", "classes", "labels", "mean size", ""):
        table.add_column(name, justify="left" if name in ("task", "list", "") else "right")
    wrong: list[str] = []
    for task in named or [""]:
        one = copy.copy(data)
        if task:
            one.task = task  # type: ignore[attr-defined]
        wrong += check_task(one, task, table)
    return table, wrong


def check_task(data: ImageModule, task: str, table: Table) -> list[str]:
    """Add a row for each list of a task; returns its mistakes."""
    wrong, missing = [], {}
    images: dict[str, list[Read]] = {}
    for name, expected in data.published_sizes.items():
        title, known = f"{task} {name}".strip(), "" if expected is None else f"{expected:,}"
        try:
            samples = data.samples_of(name)
        except (OSError, ValueError) as error:
            missing[name] = str(error)
            table.add_row(task, name, "", known, "", "", "", "wrong")
            continue
        images[name] = read(title, samples)
        found = problems(data, samples, images[name], expected)
        wrong += [f"{title}: {problem}" for problem in found]
        labels, sizes = samples.labels, [image.size for image in images[name] if not image.error] or [(0, 0)]
        width, height = (sum(side) / len(sizes) for side in zip(*sizes, strict=True))
        present = len(labels.unique()) if labels.dim() == 1 else int((labels != 0).any(0).sum())
        cells = f"{len(labels):,}", known, f"{present} of {count_of(data, labels)}"
        span, size = f"{labels.min().item():g} to {labels.max().item():g}", f"{width:.0f} x {height:.0f}"
        table.add_row(task, name, *cells, span, size, "wrong" if found else "")
    for message in dict.fromkeys(missing.values()):  # one folder may be missing for several lists
        names = ", ".join(name for name in missing if missing[name] == message)
        wrong.append(f"{task} {names}: {message}".strip())
    return wrong + [f"{task} {leak}".strip() for leak in leaks(data, images)]


def count_of(data: ImageModule, labels: Tensor) -> int:
    """Number of classes, or of the tags or numbers of an image."""
    return labels.shape[1] if labels.dim() > 1 else data.num_classes  # type: ignore[attr-defined]


def read(title: str, samples: LabelledSamples) -> list[Read]:
    """Decode the images of a list, in several threads."""

    def look(index: int) -> Read:
        name = samples.name(index)
        try:
            content = samples.content(index)
            with open_image(io.BytesIO(content)) as image:
                image.load()
                return Read(name, hashlib.blake2b(content).digest(), image.size)
        except (OSError, ValueError) as error:
            return Read(name, error=str(error))

    total = len(samples.labels)
    indices = range(0, total, max(-(-total // MOST), 1))
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as threads:
        return list(tqdm(threads.map(look, indices), desc=title, total=len(indices), leave=False, disable=None))


def problems(data: ImageModule, samples: LabelledSamples, images: list[Read], expected: int | None) -> list[str]:
    """Mistakes in one list."""
    found = []
    if expected is not None and len(samples.labels) != expected:
        found.append(f"{len(samples.labels):,} images, expected {expected:,}")
    classes = count_of(data, samples.labels)
    outside = ((samples.labels < 0) | (samples.labels >= classes)).nonzero().flatten()
    if samples.labels.dim() > 1:  # tags or numbers, which the reader of their file has checked
        outside = outside[:0]
    if len(outside):
        first = f"{int(samples.labels[outside[0]])} of {samples.name(int(outside[0]))}"
        found.append(f"{len(outside):,} labels outside 0 to {classes - 1}, first {first}")
    broken = [image for image in images if image.error]
    if broken:
        first = f"{broken[0].name} ({broken[0].error})"
        found.append(f"{len(broken):,} of {len(images):,} images cannot be read, first {first}")
    return found


def leaks(data: ImageModule, images: dict[str, list[Read]]) -> list[str]:
    """Images that are, byte for byte, in two lists that should share none; a few only give a note."""
    digests = {name: {image.digest: image.name for image in part if not image.error} for name, part in images.items()}
    tune = getattr(data, "lists", {}).get("tune", {"train": "train", "val": "val"})
    found = []
    for one, other in [*((name, "test") for name in digests if name != "test"), (tune["train"], tune["val"])]:
        shared = digests.get(one, {}).keys() & digests.get(other, {}).keys()
        examples = ", ".join(f"{digests[one][d]} = {digests[other][d]}" for d in sorted(shared)[:2])
        found += leak(one, other, len(shared), len(digests.get(one, {})), examples)
    return found
