"""Sweep learning rates over widths and parameterizations, and plot how the optimum drifts."""

import csv
import hashlib
import json
import math
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from itertools import cycle, product
from pathlib import Path
from statistics import fmean, linear_regression
from typing import Any

CONFIG = "configs/sweep/width.yaml"
NO_PARAMETERIZATION = "none"
# what tells one point from another, and what is measured
KEY = ("parameterization", "alignment", "optimizer", "base_width", "width", "lr", "seed", "config")
MEASURED = ("loss", "acc1", "chance", "seconds", "folder")
Point = dict[str, str]


def width_sweep(
    widths: str = "32,64,128",
    lrs: str = "5e-4,1e-3,2e-3,4e-3,8e-3,1.6e-2",
    parameterizations: str = "none,standard,mup",
    alignments: str = "full",
    optimizer: str = "adamw",
    seeds: str = "0",
    head_dim: int = 16,
    fit_config: Path = Path(CONFIG),
    output: Path = Path("runs/width_sweep"),
) -> None:
    """Train every width with every learning rate through ``train.py fit``, and write a table and a plot.

    ``points.csv`` in the output folder grows with every run, and no run in it is repeated: a sweep that was stopped
    goes on, and another width or rate only adds its own runs. ``summary.json`` and ``sweep.png`` are of what this
    command names: best rate of every width, its drift in octaves per octave of width, the largest rate that learns
    anything, and what the best rate of the smallest width costs at each larger one.

    Args:
        widths: Embedding widths separated by commas; the smallest is the base width.
        lrs: Learning rates at the base width.
        parameterizations: ``none`` (one rate for all, initial weights as timm draws them), ``standard``, ``ntk``,
            ``mup``, ``mean_field``.
        alignments: ``full``, ``none`` or both, for all parameterizations but ``none``.
        optimizer: ``adamw``, ``adam``, ``sgd``, ``adam_atan2`` or ``adafactor``.
        seeds: Seeds; losses are means over them.
        head_dim: Width of an attention head, the same at all widths.
        fit_config: Configuration of everything else, as for ``fit``.
        output: Folder of the table, the plot and the run folders.
    """
    from rich.console import Console

    from commands.lightning.names import nearest
    from methods.layers.exponents import ALIGNMENTS, FAMILIES, PARAMETERIZATIONS

    names = {NO_PARAMETERIZATION: None, **PARAMETERIZATIONS}
    chosen = [nearest(name, names, "parameterization") for name in listed("parameterizations", parameterizations)]
    aligned = [nearest(name, ALIGNMENTS, "alignment") for name in listed("alignments", alignments)]
    variants = [(name, a) for name in chosen for a in (aligned if name != NO_PARAMETERIZATION else ["-"])]
    nearest(optimizer, FAMILIES, "optimizer")
    all_widths = sorted(numbers("widths", widths, int))
    rates, all_seeds = sorted(numbers("lrs", lrs, float)), numbers("seeds", seeds, int, least=0)
    if len(all_widths) < 2:
        raise ValueError(f"widths={widths!r}: expected at least two, to see what changes between them")
    check_widths(fit_config, all_widths, head_dim)

    base = all_widths[0]
    text = fit_config.read_bytes() + f"head_dim {head_dim}".encode()
    common = {"optimizer": optimizer, "config": hashlib.sha256(text).hexdigest()[:12]}
    wanted = []
    for (name, alignment), width, lr, seed in product(variants, all_widths, rates, all_seeds):
        place = {"width": width, "lr": lr, "seed": seed, "base_width": "-" if name == NO_PARAMETERIZATION else base}
        values = common | {"parameterization": name, "alignment": alignment} | place
        wanted.append({column: str(values[column]) for column in KEY})
    table, done = output / "points.csv", read(output / "points.csv")
    known, console = {key(point) for point in done}, Console(width=130)
    todo = [point for point in wanted if key(point) not in known]
    console.print(f"{len(wanted)} points, {len(wanted) - len(todo)} of them in {table}")
    for number, point in enumerate(todo, 1):
        done.append(point | train(point, head_dim, fit_config, output / "runs"))
        write(table, done)
        console.print(f"{number}/{len(todo)} {describe(done[-1])}")

    wanted_keys = {key(point) for point in wanted}
    points = [point for point in done if key(point) in wanted_keys]
    summary = {label(*variant): summarise(points, *variant) for variant in variants}
    report(summary, points, output, console)


def listed(name: str, text: str) -> list[str]:
    """Values separated by commas, each once."""
    values = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not values:
        raise ValueError(f"{name} is empty: expected values separated by commas")
    return values


def numbers(name: str, text: str, kind: type[int] | type[float], least: float = 1e-30) -> list[Any]:
    """Numbers separated by commas.

    Raises:
        ValueError: If one of them is none, or below ``least``.
    """
    try:
        values = [kind(part) for part in listed(name, text)]
    except ValueError as error:
        raise ValueError(f"{name}={text!r}: {error}; expected numbers separated by commas") from error
    if not all(math.isfinite(value) and value >= least for value in values):
        raise ValueError(f"{name}={text!r}: expected {'positive numbers' if least else 'numbers of at least 0'}")
    return list(dict.fromkeys(values))


def check_widths(fit_config: Path, widths: list[int], head_dim: int) -> None:
    """Refuse widths that heads do not fill, and a backbone whose width they are not.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If the models of two widths are the same, or differ in depth.
    """
    import timm
    import torch
    import yaml

    if not fit_config.is_file():
        raise FileNotFoundError(f"fit_config={str(fit_config)!r}: no such file")
    for width in widths:
        if head_dim < 1 or width % head_dim:
            raise ValueError(f"width {width}: expected multiples of the heads' size, --head_dim {head_dim}")
    options = ((yaml.safe_load(fit_config.read_text()) or {}).get("model") or {}).get("init_args") or {}
    if options.get("pretrained", True) is not False:
        raise ValueError(
            f"fit_config={str(fit_config)!r}: a sweep over widths trains from random weights, pretrained: false"
        )
    backbone, shapes = options.get("backbone", "vit_base_patch16_224"), []
    for width in (widths[0], widths[-1]):
        args = (options.get("backbone_args") or {}) | arguments(width, head_dim)
        try:
            with torch.device("meta"):
                model = timm.create_model(backbone, **args)
        except (TypeError, RuntimeError) as error:
            raise ValueError(
                f"fit_config={str(fit_config)!r}: {backbone} has no width to sweep ({error}); expected a backbone that "
                "takes embed_dim and num_heads, such as a ViT"
            ) from error
        shapes.append({name: parameter.shape for name, parameter in model.named_parameters()})
    if shapes[0] == shapes[1] or shapes[0].keys() != shapes[1].keys():
        raise ValueError(
            f"fit_config={str(fit_config)!r}: widths {widths[0]} and {widths[-1]} give {backbone} no other width"
        )


def arguments(width: int, head_dim: int) -> dict[str, int]:
    """What timm is told of a width."""
    return {"embed_dim": width, "num_heads": width // head_dim}


def train(point: Point, head_dim: int, fit_config: Path, run_root: Path) -> Point:
    """Run one point and return what was measured; its loss is infinite if training diverged."""
    import logging

    from commands.lightning.cli import GraftCLI

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
    args += ["--seed_everything", point["seed"], "--run_root", str(run_root)]
    logger, start = logging.getLogger("lightning.pytorch"), time.perf_counter()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with redirect_stdout(StringIO()):  # the table of each run
            cli = GraftCLI.run(args)
    except FloatingPointError:
        return dict.fromkeys(MEASURED, "") | {"loss": "inf", "seconds": f"{time.perf_counter() - start:.1f}"}
    finally:
        logger.setLevel(level)
    metrics = cli.trainer.callback_metrics
    if "val/loss" not in metrics:
        raise ValueError(
            f"fit_config={str(fit_config)!r}: the fit reached no validation; a sweep compares losses of its end"
        )
    loss = float(metrics["val/loss"])
    return {
        "loss": f"{loss if math.isfinite(loss) else math.inf:.6g}",
        "acc1": f"{float(metrics['val/acc1']):.6g}",
        "chance": f"{math.log(cli.datamodule.num_classes):.6g}",
        "seconds": f"{time.perf_counter() - start:.1f}",
        "folder": str(cli.trainer.default_root_dir),
    }


def with_width_scaling(fit_config: Path) -> str:
    """Class path of the model of a configuration, stacked on width scaling."""
    from pydoc import locate

    import yaml

    from methods import METHODS, compose

    cls: Any = locate(yaml.safe_load(fit_config.read_text())["model"]["class_path"])
    *stack, task = cls.__bases__
    return f"methods.{compose(*stack, METHODS['width_scaling'], task=task).__name__}"


def key(point: Point) -> tuple[str, ...]:
    return tuple(point[column] for column in KEY)


def label(parameterization: str, alignment: str) -> str:
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
        raise ValueError(f"{table} is no table of width_sweep, or a damaged one: expected {', '.join(KEY + MEASURED)}")
    return rows


def write(table: Path, points: list[Point]) -> None:
    """Replace the table as a whole, so that a stop leaves none cut short."""
    from checkpoints.atomic import write_atomically

    text = StringIO()
    writer = csv.DictWriter(text, [*KEY, *MEASURED], lineterminator="\n")
    writer.writeheader()
    writer.writerows(points)
    write_atomically(table, lambda path: path.write_text(text.getvalue()))


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
    """What a sweep says about one parameterization, as plain data by width; see ``width_sweep``."""
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


def report(summary: dict[str, dict[str, Any]], points: list[Point], output: Path, console: Any) -> None:
    """Print the table, write the summary and draw the plot."""
    from rich.table import Table

    from checkpoints.atomic import write_atomically

    widths = list(next(iter(summary.values()))["loss"])
    table = Table("parameterization", title="best loss @ lr of every width", title_justify="left")
    for column in (*(f"width {width}" for width in widths), "drift", f"penalty at {widths[-1]}"):
        table.add_column(column, justify="right")
    for name, about in summary.items():
        cells = [f"{about['best_loss'][w]:.4f} @ {about['best_lr'][w]:g}{mark(about, w)}" for w in widths]
        table.add_row(name, *cells, f"{about['drift']:+.2f}", f"{about['transfer_penalty'][widths[-1]]:.4f}")
    console.print(table)
    console.print("drift: octaves of the best lr per octave of width; penalty: of the smallest width's best lr.")
    if any(about["best_at_edge"] for about in summary.values()):
        console.print("* at the edge of the rates: add some with --lrs before reading anything into its drift.")
    if len({point["seed"] for point in points}) == 1:
        console.print("One seed: differences of about one step of the grid are noise.")
    text = json.dumps(plain(summary), indent=2)
    write_atomically(output / "summary.json", lambda path: path.write_text(text))
    draw(summary, points[0]["optimizer"], output / "sweep.png")
    console.print(f"{output / 'points.csv'}, {output / 'summary.json'}, {output / 'sweep.png'}")


def mark(about: dict[str, Any], width: int) -> str:
    return " *" if width in about["best_at_edge"] else ""


def plain(value: Any) -> Any:
    """The same with text where JSON has no number: infinite losses."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def draw(summary: dict[str, dict[str, Any]], optimizer: str, picture: Path) -> None:
    """Loss over learning rate, a panel for every parameterization; then the best rates over the width."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from checkpoints.atomic import write_atomically

    count = len(summary) + 1
    figure, axes = plt.subplots(1, count, figsize=(3.6 * count, 3.6), layout="constrained")
    finite = [loss for about in summary.values() for _, _, loss in curves(about)]
    for axis, (name, about) in zip(axes, summary.items(), strict=False):
        colours = plt.get_cmap("viridis")
        widths = list(about["loss"])
        for i, width in enumerate(widths):
            colour = colours(i / max(len(widths) - 1, 1) * 0.85)
            points = [(lr, loss) for w, lr, loss in curves(about) if w == width]
            if points:
                axis.plot(*zip(*points, strict=True), color=colour, marker=".", label=f"width {width}")
                axis.plot(about["best_lr"][width], about["best_loss"][width], "*", color=colour, markersize=14)
        axis.set(title=name, xscale="log", xlabel="learning rate at the base width", ylabel="validation loss")
        if finite:
            axis.set_ylim(min(finite) * 0.95, max(finite) * 1.03)
        if axis.lines:
            axis.legend(fontsize="small")
    styles = cycle(["-", "--", ":", "-."])  # curves of two parameterizations often lie on each other
    for (name, about), style in zip(summary.items(), styles, strict=False):
        line = zip(*about["best_lr"].items(), strict=True)
        axes[-1].plot(*line, style, marker="*", markersize=10, linewidth=2, alpha=0.7, label=name)
    widths = list(next(iter(summary.values()))["loss"])
    axes[-1].set(title="drift of the optimum", xlabel="width", ylabel="best learning rate", xscale="log", yscale="log")
    axes[-1].set_xticks(widths, [str(width) for width in widths])
    rates = sorted({lr for about in summary.values() for rates in about["loss"].values() for lr in rates})
    axes[-1].set_yticks(rates, [f"{lr:g}" for lr in rates])
    axes[-1].minorticks_off()
    axes[-1].legend(fontsize="small")
    figure.suptitle(f"{optimizer}; stars: best rate of each width", fontsize="medium")
    write_atomically(picture, lambda path: figure.savefig(path, format="png", dpi=120))
    plt.close(figure)


def curves(about: dict[str, Any]) -> Iterator[tuple[int, float, float]]:
    """Width, learning rate and loss of the points that did not diverge."""
    for width, rates in about["loss"].items():
        for lr, loss in rates.items():
            if math.isfinite(loss):
                yield width, lr, loss
