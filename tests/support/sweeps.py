"""Options and tables of a small sweep over widths."""

import csv
from pathlib import Path

from commands.width_sweep.points import KEY, MEASURED

SWEEP = ["--widths", "16,32", "--lrs", "1e-3,1e-2", "--parameterizations", "none,mup", "--head_dim", "16"]


def rows(output: Path) -> list[dict[str, str]]:
    with (output / "points.csv").open() as file:
        return list(csv.DictReader(file))


def table(losses: dict[int, list[float]], seeds: int = 1) -> list[dict[str, str]]:
    """Points at the rates 1, 2, 4, ... of each width."""
    known = dict.fromkeys([*KEY, *MEASURED], "") | {"parameterization": "mup", "alignment": "full", "chance": "2.0"}
    return [
        known | {"width": str(width), "lr": str(2.0**i), "seed": str(seed), "loss": str(loss + 0.1 * seed)}
        for width, values in losses.items()
        for i, loss in enumerate(values)
        for seed in range(seeds)
    ]
