"""Points of a sweep: one fit each, and a line in ``points.csv``."""

import csv
import hashlib
import math
import time
from io import StringIO
from pathlib import Path
from typing import Any

from checkpoints.atomic import write_atomically
from commands.lightning.errors import Failed
from commands.lightning.runs import run_once
from commands.report.runs import metric_of
from commands.width_sweep.widths import arguments, with_width_scaling

NO_PARAMETERIZATION = "none"
# columns that tell one point from another, and measured ones
KEY = ("parameterization", "alignment", "optimizer", "base_width", "width", "lr", "seed", "config")
MEASURED = ("loss", "metric", "chance", "seconds", "folder")
Point = dict[str, str]


def train(point: Point, head_dim: int, fit_config: Path, run_root: Path) -> Point:
    """Run one point, unless it has finished before.

    Args:
        point: The point.
        head_dim: Width of an attention head.
        fit_config: Configuration of everything else.
        run_root: Folder of the folders of all points.

    Returns:
        The measured columns. The loss is infinite if training diverged.
    """
    options: dict[str, Any] = {
        f"backbone_args.{name}": value for name, value in arguments(int(point["width"]), head_dim).items()
    }
    options |= {name: point[name] for name in ("optimizer", "lr")}
    args = ["fit", "--config", str(fit_config)]
    if point["parameterization"] != NO_PARAMETERIZATION:
        args.append(f"--model={with_width_scaling(fit_config)}")
        options |= {f"width_{name}": point[name] for name in ("parameterization", "alignment")}
        options["width_base"] = point["base_width"]
    args += [f"--model.{name}={value}" for name, value in options.items()]
    args += ["--seed_everything", point["seed"]]
    root, start = run_root / folder_name(point), time.perf_counter()
    try:
        # in this process, because starting another takes as long as a small run
        result = run_once(args, root, log=root / "log.txt", own_process=False)
    except Failed as failure:
        if not isinstance(failure.error, FloatingPointError):
            raise
        return dict.fromkeys(MEASURED, "") | {"loss": "inf", "seconds": f"{time.perf_counter() - start:.1f}"}
    if "val/loss" not in result:
        raise ValueError(
            f"fit_config={str(fit_config)!r}: the fit reached no validation; a sweep compares losses of its end"
        )
    loss, classes = float(result["val/loss"]), result.get("num_classes")
    metric = float(result[f"val/{metric_of(result)['name']}"])
    return {
        "loss": f"{loss if math.isfinite(loss) else math.inf:.6g}",
        "metric": f"{metric:.6g}",
        "chance": f"{math.log(classes):.6g}" if classes else "",
        "seconds": f"{time.perf_counter() - start:.1f}",
        "folder": result["folder"],
    }


def folder_name(point: Point) -> str:
    """Name of the folder of a point's run."""
    digest = hashlib.sha256(repr(key(point)).encode()).hexdigest()[:8]
    shown = label(point["parameterization"], point["alignment"]).replace(", ", "-").replace(" ", "-")
    return f"{shown}-{point['width']}-{point['lr']}-s{point['seed']}-{digest}"


def key(point: Point) -> tuple[str, ...]:
    """Values that tell one point from another."""
    return tuple(point[column] for column in KEY)


def label(parameterization: str, alignment: str) -> str:
    """Name of a parameterization in tables."""
    return parameterization if alignment == "-" else f"{parameterization}, {alignment} alignment"


def describe(point: Point) -> str:
    """One line about a finished point."""
    where = f"{label(point['parameterization'], point['alignment'])}, width {point['width']}, lr {point['lr']}"
    return f"{where}, seed {point['seed']}: loss {float(point['loss']):.4f} in {float(point['seconds']):.0f} s"


def read(table: Path) -> list[Point]:
    """The points of an earlier sweep.

    Raises:
        ValueError: If the file is another table.
    """
    if not table.exists():
        return []
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if any(set(row) != {*KEY, *MEASURED} or None in row.values() for row in rows):
        raise ValueError(
            f"{table} is no table of width_sweep, or a damaged one: expected the columns "
            f"{', '.join(KEY + MEASURED)}; name another --output"
        )
    return rows


def write(table: Path, points: list[Point]) -> None:
    """Replace the table as a whole, because a stop in between would leave a part of it."""
    text = StringIO()
    writer = csv.DictWriter(text, [*KEY, *MEASURED], lineterminator="\n")
    writer.writeheader()
    writer.writerows(points)
    write_atomically(table, lambda path: path.write_text(text.getvalue()))
