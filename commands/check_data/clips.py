"""Check of videos."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from rich.table import Table
from tqdm import tqdm

from datamodules.clips import Clips
from datamodules.overlap import leak
from datamodules.video_module import VideoModule

COLUMNS = ("split", "videos", "expected", "classes", "frames", "mean size", "")


class Read(NamedTuple):
    """Facts about a video."""

    name: str
    digest: bytes = b""
    frames: int = 0
    size: tuple[int, int] = (0, 0)
    error: str = ""


def check_clips(data: VideoModule) -> tuple[Table, list[str]]:
    """Read every video of every split, and decode its last frame.

    Returns:
        A table with a row for each split, and the mistakes.
    """
    table = Table(title=f"{type(data).__name__} in {getattr(data, 'root', '')}", title_justify="left")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("split", "") else "right")
    wrong, found = list[str](), dict[str, list[Read]]()
    for split in ("train", "val", "test"):
        try:
            samples = data.samples(split)
        except (OSError, ValueError) as error:
            wrong.append(f"{split}: {error}")
            table.add_row(split, *[""] * (len(COLUMNS) - 2), "wrong")
            continue
        if samples is not None:
            found[split] = read(data, split, samples)
            wrong += check_split(data, split, samples, found[split], table)
    return table, wrong + leaks(found)


def read(data: VideoModule, split: str, samples: Clips) -> list[Read]:
    """Facts about the videos of a split, in several threads."""

    def look(index: int) -> Read:
        name = samples.name(index)
        try:
            length = data.length(sample := samples[index])
            height, width = sample.video.read([length - 1]).shape[2:]
            digest = hashlib.blake2b(sample.video.content()).digest()
        except (OSError, ValueError) as error:
            return Read(name, error=str(error))
        return Read(name, digest, length, (width, height))

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as threads:
        indices = range(len(samples))
        return list(tqdm(threads.map(look, indices), desc=split, total=len(indices), leave=False, disable=None))


def check_split(data: VideoModule, split: str, samples: Clips, videos: list[Read], table: Table) -> list[str]:
    """Add the row of a split; returns its mistakes."""
    labels, expected = samples.labels, data.expected(split)
    known = "" if expected is None else f"{expected:,}"
    wrong = [f"{len(samples):,} videos, expected {known}"] if expected not in (None, len(samples)) else []
    outside = ((labels < 0) | (labels >= data.num_classes)).nonzero().flatten()
    if len(outside):
        first = f"{int(labels[outside[0]])} of {samples.name(int(outside[0]))}"
        wrong.append(f"{len(outside):,} labels outside 0 to {data.num_classes - 1}, first {first}")
    broken = [video for video in videos if video.error]
    if broken:
        first = f"{broken[0].name} ({broken[0].error})"
        wrong.append(f"{len(broken):,} of {len(videos):,} videos cannot be read, first {first}")
    short = [video.name for video in videos if not video.error and video.frames < data.frames]
    if short:
        print(f"note: {split}: {len(short):,} videos have fewer than {data.frames} frames, first {short[0]}")
    whole = [video for video in videos if not video.error] or [Read("")]
    frames = f"{min(video.frames for video in whole)} to {max(video.frames for video in whole)}"
    width, height = (sum(side) / len(whole) for side in zip(*(video.size for video in whole), strict=True))
    classes = f"{len(labels.unique())} of {data.num_classes}"
    cells = f"{len(samples):,}", known, classes, frames, f"{width:.0f} x {height:.0f}"
    table.add_row(split, *cells, "wrong" if wrong else "")
    return [f"{split}: {problem}" for problem in wrong]


def leaks(found: dict[str, list[Read]]) -> list[str]:
    """Videos that are, byte for byte, in two splits; a few only give a note."""
    known = {
        split: {video.digest: video.name for video in videos if not video.error} for split, videos in found.items()
    }
    wrong = []
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        first, second = known.get(one, {}), known.get(other, {})
        shared = [digest for digest in first if digest in second]
        example = " = ".join((first[shared[0]], second[shared[0]])) if shared else ""
        wrong += leak(one, other, len(shared), len(first), example, "video")
    return wrong
