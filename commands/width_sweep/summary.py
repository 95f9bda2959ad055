"""Summary of a sweep: best rates, their drift, and the cost of a transfer over widths."""

import math
from collections.abc import Iterator
from statistics import fmean, linear_regression
from typing import Any

from commands.width_sweep.points import Point


def losses(points: list[Point], parameterization: str, alignment: str) -> dict[int, dict[float, float]]:
    """Loss by width and learning rate, a mean over seeds."""
    found: dict[int, dict[float, list[float]]] = {}
    for point in points:
        if (point["parameterization"], point["alignment"]) == (parameterization, alignment):
            rates = found.setdefault(int(point["width"]), {})
            rates.setdefault(float(point["lr"]), []).append(float(point["loss"]))
    return {
        width: {lr: fmean(values) for lr, values in sorted(rates.items())} for width, rates in sorted(found.items())
    }


def summarise(points: list[Point], parameterization: str, alignment: str) -> dict[str, Any]:
    """Numbers of one parameterization, as plain data by width.

    Args:
        points: All points of the sweep.
        parameterization: Name of the parameterization.
        alignment: Name of the alignment.

    Returns:
        ``loss`` by width and rate; by width ``best_lr``, ``best_loss``, ``largest_stable_lr`` (the largest rate with a
        loss below chance) and ``transfer_penalty`` (added loss at the best rate of the smallest width); the widths
        ``best_at_edge``, whose best rate is the first or last; ``drift`` in octaves of the rate per octave of width.
    """
    table = losses(points, parameterization, alignment)
    chance = max(float(point["chance"] or 0) for point in points) or math.inf
    best = {width: min(rates, key=lambda lr: (rates[lr], lr)) for width, rates in table.items()}
    first = best[min(table)]
    octaves = [[math.log2(value) for value in values] for values in (best.keys(), best.values())]
    return {
        "loss": table,
        "best_lr": best,
        "best_loss": {width: table[width][lr] for width, lr in best.items()},
        "best_at_edge": [width for width, lr in best.items() if lr in (min(table[width]), max(table[width]))],
        "drift": linear_regression(*octaves).slope,
        "largest_stable_lr": {
            width: max((lr for lr, loss in rates.items() if loss < chance), default=None)
            for width, rates in table.items()
        },
        "transfer_penalty": {width: rates[first] - rates[best[width]] for width, rates in table.items()},
    }


def curves(about: dict[str, Any]) -> Iterator[tuple[int, float, float]]:
    """Width, learning rate and loss of the points that did not diverge."""
    for width, rates in about["loss"].items():
        for lr, loss in rates.items():
            if math.isfinite(loss):
                yield width, lr, loss


def plain(value: Any) -> Any:
    """Data with None in the place of infinite losses, because JSON has no such number."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
