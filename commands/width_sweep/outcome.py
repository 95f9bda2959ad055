"""Report of a sweep: a printed table, ``summary.json`` and ``sweep.png``."""

import json
from itertools import cycle
from pathlib import Path
from typing import Any

from checkpoints.atomic import write_atomically
from commands.width_sweep.points import Point
from commands.width_sweep.summary import curves, plain


def report(summary: dict[str, dict[str, Any]], points: list[Point], output: Path, console: Any) -> None:
    """Print the table, write the summary and draw the plot."""
    from rich.table import Table

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


def draw(summary: dict[str, dict[str, Any]], optimizer: str, picture: Path) -> None:
    """Loss over learning rate, a panel for every parameterization; then the best rates over the width."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    count = len(summary) + 1
    figure = Figure(figsize=(3.6 * count, 3.6), layout="constrained")
    axes = figure.subplots(1, count)
    finite = [loss for about in summary.values() for _, _, loss in curves(about)]
    for axis, (name, about) in zip(axes, summary.items(), strict=False):
        colours = colormaps["viridis"]
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
