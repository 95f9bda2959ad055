"""Check of images with masks."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from datamodules.joint_transforms import IGNORED
from datamodules.masks import Pairs
from datamodules.overlap import digests, leak
from datamodules.samples import ImageSamples
from datamodules.segmentation_images import SegmentationImages

COLUMNS = ("split", "images", "expected", "classes", "without a class", "mean size", "")


class Read(NamedTuple):
    """Facts about an image with its mask."""

    counts: Tensor
    size: tuple[int, int] = (0, 0)
    error: str = ""


def check_masks(data: SegmentationImages) -> tuple[Table, list[str]]:
    """Read every image and mask of every split.

    Returns:
        A table with a row for each split, and the mistakes.
    """
    table = Table(title=f"{type(data).__name__} in {getattr(data, 'root', '')}", title_justify="left")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("split", "") else "right")
    wrong, found = list[str](), dict[str, Pairs]()
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
    for remark in data.remarks():
        print(f"note: {remark}")
    return table, wrong + leaks(found)


def check_split(data: SegmentationImages, split: str, samples: Pairs, table: Table) -> list[str]:
    """Add the row of a split; returns its mistakes."""

    def look(index: int) -> Read:
        try:
            with (sample := samples[index]).image as image:
                labels = data.both(sample)[1]
                return Read(labels.flatten().long().bincount(minlength=IGNORED + 1), image.size)
        except (OSError, ValueError) as error:
            return Read(torch.zeros(IGNORED + 1, dtype=torch.long), error=f"{samples.name(index)} ({error})")

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as threads:
        indices = range(len(samples))
        images = list(tqdm(threads.map(look, indices), desc=split, total=len(indices), leave=False, disable=None))
    broken = [image.error for image in images if image.error]
    counts = torch.stack([image.counts for image in images]).sum(0)
    present = int((counts[: data.num_classes] > 0).sum())
    sizes = [image.size for image in images if not image.error] or [(0, 0)]
    width, height = (sum(side) / len(sizes) for side in zip(*sizes, strict=True))
    size = f"{width:.0f} x {height:.0f}"
    share = float(counts[IGNORED] / counts.sum().clamp(min=1))
    expected = data.expected(split)
    known = "" if expected is None else f"{expected:,}"
    other_length = expected not in (None, len(samples))
    cells = f"{len(samples):,}", known, f"{present} of {data.num_classes}", f"{share:.1%}", size
    table.add_row(split, *cells, "wrong" if broken or other_length else "")
    if split == "train" and present < data.num_classes and not broken:
        print(f"note: {data.num_classes - present} of {data.num_classes} classes have no training pixel")
    wrong = [f"{split}: {len(samples):,} images, expected {known}"] if other_length else []
    if broken:
        wrong.append(f"{split}: {len(broken):,} of {len(samples):,} images cannot be used, first {broken[0]}")
    return wrong


def leaks(found: Mapping[str, ImageSamples]) -> list[str]:
    """Images that are, byte for byte, in two splits; a few only give a note."""
    known = {split: digests(samples) for split, samples in found.items()}
    wrong = []
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        first, second = known.get(one, {}), known.get(other, {})
        shared = [digest for digest in first if digest in second]
        example = " = ".join((first[shared[0]], second[shared[0]])) if shared else ""
        wrong += leak(one, other, len(shared), len(first), example)
    return wrong
