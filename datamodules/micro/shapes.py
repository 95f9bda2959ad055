"""Drawn datasets of micro-VTAB, after CLEVR and dSprites: number, distance, location and orientation of shapes."""

import colorsys
import math

import numpy as np
from PIL import Image, ImageDraw

SIZE = 32  # side of an image in pixels
FINE = 8  # shapes are drawn this many times as large, then averaged
CLASSES = {"shapes_count": 8, "shapes_dist": 6, "shapes_loc": 8, "shapes_ori": 8}
SPLITS = ("train800", "val200", "test")
CIRCLE = 24  # corners of a polygon that looks like a circle
UP = -math.pi / 2  # direction upwards, because y grows downwards

Point = tuple[float, float]


class Scene:
    """Bright shapes on a grey ground with grey noise, so that only the colour separates shapes from ground.

    Args:
        random: Generator of all random numbers of the image.
    """

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.shapes = Image.new("RGB", (SIZE * FINE, SIZE * FINE))
        self.cover = Image.new("L", (SIZE * FINE, SIZE * FINE))
        self.ground = np.full((SIZE, SIZE), self.random.uniform(50, 200))
        self.ground += np.tensordot(self.random.uniform(-1, 1, 2), np.indices((SIZE, SIZE)), 1)

    def uniform(self, low: float, high: float) -> float:
        """Random number between two bounds."""
        return float(self.random.uniform(low, high))

    def add(self, corners: list[Point]) -> None:
        """Draw a polygon in a random colour over all earlier ones; corners are in pixels of the image."""
        color = colorsys.hsv_to_rgb(self.uniform(0, 1), self.uniform(0.7, 1), self.uniform(0.6, 1))
        points = [(round(x * FINE), round(y * FINE)) for x, y in corners]
        ImageDraw.Draw(self.shapes).polygon(points, fill=tuple(round(255 * part) for part in color))
        ImageDraw.Draw(self.cover).polygon(points, fill=255)

    def image(self) -> Image.Image:
        """RGB image of ``SIZE`` x ``SIZE`` pixels."""
        noise = self.random.normal(0, 6, (SIZE, SIZE))
        shapes, cover = (np.asarray(layer.reduce(FINE), float) for layer in (self.shapes, self.cover))
        pixels = shapes + ((self.ground + noise).clip(0, 255) * (1 - cover / 255))[..., None]
        return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))


def draw(task: str, split: str, index: int) -> tuple[Image.Image, int]:
    """One image of a dataset and its label; the same at every call.

    Args:
        task: One of ``CLASSES``.
        split: One of ``SPLITS``.
        index: Number of the image in its split. Labels alternate, so that all classes have equally many images.
    """
    label = index % CLASSES[task]
    scene = Scene(np.random.default_rng([list(CLASSES).index(task), SPLITS.index(split), index]))
    {"shapes_count": count, "shapes_dist": dist, "shapes_loc": loc, "shapes_ori": ori}[task](scene, label)
    return scene.image(), label


def count(scene: Scene, label: int) -> None:
    """``label`` + 1 shapes that do not touch."""
    placed: list[tuple[float, float, float]] = []
    while len(placed) <= label:
        radius = scene.uniform(2.2, 3.6)
        x, y = scene.uniform(radius, SIZE - radius), scene.uniform(radius, SIZE - radius)
        if all(math.hypot(x - a, y - b) > radius + other + 1.5 for a, b, other in placed):
            placed.append((x, y, radius))
            scene.add(regular(any_sides(scene), (x, y), radius, scene.uniform(0, math.tau)))


def dist(scene: Scene, label: int) -> None:
    """Shapes that stand on a plain, seen from a fixed height; bin of the distance of the nearest, the farthest first.

    In perspective, a shape at depth z touches the plain c / z below the horizon, and its size is proportional to 1 / z.
    """
    horizon = int(scene.random.integers(8, 16))
    step = scene.uniform(25, 50)
    scene.ground[:horizon] += step
    scene.ground[horizon:] -= step
    nearest = 3 + 2 * within(scene, label)
    others = sorted(scene.uniform(2.5, nearest - 0.5) for _ in range(scene.random.integers(1, 5)))
    for below in [*others, nearest]:
        sides, radius = any_sides(scene), below * scene.uniform(0.25, 0.45)
        middle = horizon + below - radius * math.cos(math.pi / sides)  # its lowest side lies on the plain
        centre = (scene.uniform(radius, SIZE - radius), middle)
        scene.add(regular(sides, centre, radius, math.pi / 2 + math.pi / sides))


def loc(scene: Scene, label: int) -> None:
    """One shape; bin of the x of its centre."""
    radius, margin = scene.uniform(3, 6), 6
    x = margin + within(scene, label) * (SIZE - 2 * margin) / CLASSES["shapes_loc"]
    y = scene.uniform(margin, SIZE - margin)
    scene.add(regular(any_sides(scene), (x, y), radius, scene.uniform(0, math.tau)))


def ori(scene: Scene, label: int) -> None:
    """One pointed shape; bin of the direction of its tip, clockwise from upwards."""
    angle = UP + within(scene, label) * math.tau / CLASSES["shapes_ori"]
    length, width = scene.uniform(7, 11), scene.uniform(0.35, 0.6)
    x, y = scene.uniform(length, SIZE - length), scene.uniform(length, SIZE - length)
    notch = scene.uniform(0.0, 0.5)  # a dart or a triangle
    outline = [(1.0, 0.0), (-0.7, width), (-0.7 + notch, 0.0), (-0.7, -width)]
    cos, sin = length * math.cos(angle), length * math.sin(angle)
    scene.add([(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in outline])


def within(scene: Scene, label: int) -> float:
    """Random number in the bin [label, label + 1], away from its edges."""
    return label + scene.uniform(0.15, 0.85)


def any_sides(scene: Scene) -> int:
    """Number of corners of a triangle, a square or a circle."""
    return int(scene.random.choice([3, 4, CIRCLE]))


def regular(sides: int, centre: Point, radius: float, angle: float) -> list[Point]:
    """Corners of a regular polygon, the first one in the direction ``angle`` (radians)."""
    turns = [angle + math.tau * side / sides for side in range(sides)]
    return [(centre[0] + radius * math.cos(turn), centre[1] + radius * math.sin(turn)) for turn in turns]
