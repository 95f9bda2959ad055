"""Images that are in two splits, found by their bytes."""

import hashlib
from typing import Any

from datamodules.samples import ImageSamples

LEAK = 0.05  # share of a split; dSprites and others hold some images twice by nature
MOST = 20_000  # images of both splits, whose bytes are read in seconds; `train.py check_data` reads all of them


def shared_images(train: ImageSamples, test: ImageSamples) -> list[tuple[str, str]]:
    """Names of the training images that are, byte for byte, test images as well, each with the name of the test image.

    Args:
        train: Training images.
        test: Test images. If both have more than ``MOST`` images together, none is read.
    """
    if len(train) + len(test) > MOST:
        return []
    known = digests(test)
    return [(name, known[digest]) for digest, name in digests(train).items() if digest in known]


def digests(samples: ImageSamples) -> dict[bytes, str]:
    """Names of images by the digest of their bytes, without those that cannot be read."""
    found = {}
    for index in range(len(samples)):
        try:
            found[hashlib.blake2b(samples.content(index)).digest()] = samples.name(index)
        except OSError:
            continue  # the loaders name it, or leave it out
    return found


def check_overlap(train: Any, test: Any, allow: bool, kind: str = "image") -> None:
    """Refuse a test split that holds training images; a few only give a note.

    Args:
        train: Training images.
        test: Test images.
        allow: Print a note in any case.
        kind: Name of one sample in messages; videos are compared in the same way.

    Raises:
        ValueError: If more than a share ``LEAK`` of the training images are test images.
    """
    shared = shared_images(train, test)
    if not shared:
        return
    examples = ", ".join(f"{one} = {other}" for one, other in shared[:2])
    message = f"train and test share {len(shared):,} of {len(train):,} {kind}s: {examples}"
    if len(shared) > LEAK * len(train) and not allow:
        raise ValueError(f"{message}. Take them out of one split, or pass --data.allow_overlap true")
    print(f"note: {message}")


def leak(one: str, other: str, shared: int, count: int, example: str, kind: str = "image") -> list[str]:
    """Line about images that two splits share, for a check of data; of a share up to ``LEAK`` only a printed note.

    Args:
        one: Name of the first split.
        other: Name of the second split.
        shared: Number of images in both.
        count: Number of images in the first split.
        example: Names of such images.
        kind: Name of one sample.
    """
    line = f"{one} and {other} share {shared:,} of {count:,} {kind}s: {example}"
    if shared > LEAK * count:
        return [line]
    if shared:
        print(f"note: {line}")
    return []
