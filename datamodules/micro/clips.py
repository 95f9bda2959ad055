"""Micro-clips: one garment of Fashion-MNIST that moves over a textured ground for eight frames.

A clip has two labels: its garment, and its kind of motion. The kinds differ in the places, sizes and turns that the
garment takes, so that the frames without their order tell them. All arithmetic is on integers, so that a clip is the
same on every machine.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from datamodules.micro.scenes import DARK, class_names, garments

SIZE = 32  # side of a frame in pixels
FRAMES = 8
COUNTS = {"train": 400, "val": 100, "test": 400}
MOTIONS = ("across", "up and down", "circle", "zoom", "turn")
CIRCLE = ((0, -6), (4, -4), (6, 0), (4, 4), (0, 6), (-4, 4), (-6, 0), (-4, -4))  # offsets (x, y) in pixels


class Clip(NamedTuple):
    """A clip with its labels.

    Args:
        frames: uint8 pixels (T, H, W, 3).
        item: Number of the garment, in the order of ``item_names``.
        motion: Number of the kind of motion, in the order of ``MOTIONS``.
    """

    frames: np.ndarray
    item: int
    motion: int


def item_names() -> list[str]:
    """Names of the garments, those of Fashion-MNIST."""
    return class_names()[1:]


def draw(split: str, index: int) -> Clip:
    """One clip; the same at every call.

    Args:
        split: One of ``COUNTS``.
        index: Number of the clip in its split. Motions alternate, so that all have equally many clips.
    """
    random = np.random.default_rng([32, list(COUNTS).index(split), index])
    pictures, labels = garments(split)
    choice, motion = int(random.integers(len(pictures))), index % len(MOTIONS)
    colour, side = random.integers(90, 256, 3), int(random.integers(16, 21))
    ground = textured(random)
    frames = []
    for x, y, scale, turns in steps(MOTIONS[motion], int(random.integers(FRAMES)), bool(random.integers(2))):
        length = side * scale // 8
        picture = pictures[choice].resize((length, length), Image.Resampling.BICUBIC)
        grey = np.zeros((3 * SIZE, 3 * SIZE), np.int64)  # with room for what leaves the frame
        top, left = (SIZE + SIZE // 2 + offset - length // 2 for offset in (y, x))
        grey[top : top + length, left : left + length] = np.rot90(np.asarray(picture), turns)
        grey = grey[SIZE : 2 * SIZE, SIZE : 2 * SIZE, None]
        frames.append(np.where(grey > DARK, grey * colour // 255, ground))
    return Clip(np.stack(frames).astype(np.uint8), labels[choice], motion)


def steps(motion: str, start: int, backwards: bool) -> list[tuple[int, int, int, int]]:
    """Place (x, y) in pixels from the middle, eighths of the size, and quarter turns of the garment in each frame.

    Args:
        motion: One of ``MOTIONS``.
        start: Frame of the motion that comes first; the motion goes on in a circle.
        backwards: Whether it runs backwards.
    """
    order = [(start + number) % FRAMES for number in range(FRAMES)]
    found = []
    for now in reversed(order) if backwards else order:
        far = abs(now - FRAMES // 2)  # 4, 3, 2, 1, 0, 1, 2, 3
        if motion == "across":
            found.append((5 * far - 10, 0, 8, 0))
        elif motion == "up and down":
            found.append((0, 5 * far - 10, 8, 0))
        elif motion == "circle":
            found.append((*CIRCLE[now], 8, 0))
        elif motion == "zoom":
            found.append((0, 0, 4 + 2 * far, 0))
        else:
            found.append((0, 0, 8, now % 4))
    return found


def textured(random: np.random.Generator) -> np.ndarray:
    """Ground (H, W, 3) of one dark colour with a coarse texture."""
    coarse = Image.fromarray(random.integers(0, 256, (5, 5), dtype=np.uint8))
    waves = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC)).astype(np.int64) - 128
    return (random.integers(30, 90, 3) + (waves // 6)[..., None]).clip(0, 255)
