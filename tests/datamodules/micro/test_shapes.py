"""The drawn tasks of micro-VTAB: the same images at every call, and labels that the pixels tell."""

import hashlib
import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn.functional import max_pool2d

from datamodules.micro.shapes import CLASSES, SIZE, SPLITS, draw

READ = 64  # images of each task that are read


def pixels(task: str, index: int, split: str = "test") -> np.ndarray:
    return np.asarray(draw(task, split, index)[0], float)


def cover(image: np.ndarray) -> np.ndarray:
    """How much of each pixel a shape covers, about: the ground has no colour."""
    color = image.max(2) - image.min(2)
    return (color / 100).clip(0, 1)


def count(image: np.ndarray) -> int:
    """Connected regions, less one: a number spreads over each until nothing changes."""
    inside = torch.from_numpy(cover(image) > 0.35)[None].float()
    numbers = torch.arange(1.0, SIZE * SIZE + 1).view(1, SIZE, SIZE) * inside
    while not torch.equal(grown := max_pool2d(numbers, 3, 1, 1) * inside, numbers):
        numbers = grown
    return len(numbers[inside > 0].unique()) - 1


def dist(image: np.ndarray) -> int:
    """How far the lowest shape stands below the horizon, in bins of two pixels."""
    grey = np.where(cover(image) == 0, image.mean(2), np.nan)
    horizon = int(np.nanmedian(grey[:-1] - grey[1:], axis=1).argmax()) + 1
    color = image.max(2) - image.min(2)
    lowest = int((color.max(1) > 8).nonzero()[0].max())
    column = color[lowest].argmax()
    below = lowest + min(color[lowest, column] / color[lowest - 1, column], 1) - horizon
    return int((below - 3) // 2)


def centre(weights: np.ndarray) -> np.ndarray:
    """The centroid (x, y), in pixels from the upper left corner."""
    y, x = np.indices(weights.shape) + 0.5
    return np.array([(x * weights).sum(), (y * weights).sum()]) / weights.sum()


def loc(image: np.ndarray) -> int:
    weights = image.max(2) - image.min(2)  # of one colour, so this is its cover
    return int((centre(weights)[0] - 6) // 2.5)


def ori(image: np.ndarray) -> int:
    """The long axis, towards the side that reaches farther from the centroid."""
    weights = image.max(2) - image.min(2)
    y, x = np.indices(weights.shape) + 0.5
    places = np.stack([x, y], -1).reshape(-1, 2) - centre(weights)
    mass = weights.reshape(-1, 1)
    axis = np.linalg.eigh((mass * places).T @ places)[1][:, 1]
    along = places @ axis
    axis *= np.sign((mass[:, 0] * along**3).sum())
    clockwise = math.atan2(axis[0], -axis[1]) % math.tau
    return int(clockwise // (math.tau / 8))


@pytest.mark.parametrize("task", CLASSES)
def test_labels_are_what_the_pixels_say(task: str) -> None:
    read = {"shapes_count": count, "shapes_dist": dist, "shapes_loc": loc, "shapes_ori": ori}[task]
    labels = [draw(task, "test", index)[1] for index in range(READ)]
    right = sum(read(pixels(task, index)) == label for index, label in enumerate(labels))
    assert right >= 0.95 * READ, f"{right} of {READ}"


@pytest.mark.parametrize("task", CLASSES)
def test_classes_have_as_many_images(task: str) -> None:
    counts = Counter(draw(task, "train800", index)[1] for index in range(4 * CLASSES[task]))
    assert counts == dict.fromkeys(range(CLASSES[task]), 4)


@pytest.mark.parametrize("task", CLASSES)
def test_an_image_depends_on_its_place_alone(task: str) -> None:
    digests = {}
    for split in SPLITS:
        for index in (3, 0, 1):
            image, _ = draw(task, split, index)
            assert (image.mode, image.size) == ("RGB", (SIZE, SIZE))
            digests[split, index] = hashlib.sha256(image.tobytes()).hexdigest()
    again = {place: hashlib.sha256(draw(task, *place)[0].tobytes()).hexdigest() for place in sorted(digests)}
    assert again == digests
    assert len(set(digests.values())) == len(digests)
