"""Picture and table of the results of a scoring pass."""

import csv
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from checkpoints.atomic import write_atomically

HEADER = ["tensor", "numel", "mean", "max", "selected"]
LAST = ("norms", "biases", "other")  # columns to the right of the layers


class Scored(NamedTuple):
    """Row of the table: a tensor, a part of a tensor, or the channels of a block."""

    name: str
    """Name of the tensor, part or block."""
    values: Tensor
    """Its scores, not negative."""
    selected: int
    """Number of trained parameters (or channels)."""
    module: bool = False
    """Whether the trained parameters are those of an added module, not entries of the tensor."""
    channels: Tensor | None = None
    """Indices of the selected channels, if channels are scored."""


def table(rows: Iterable[Scored]) -> list[list[Any]]:
    """Table lines with the columns of ``HEADER``, one for each row."""
    return [[r.name, r.values.numel(), float(r.values.mean()), float(r.values.max()), r.selected] for r in rows]


def write(folder: Path, figure: Any, lines: list[list[Any]]) -> Path:
    """Write ``scores.png`` and ``scores.csv`` into a folder; returns the path of the picture."""

    def write_table(path: Path) -> None:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([HEADER, *lines])

    write_atomically(folder / "scores.csv", write_table)
    write_atomically(folder / "scores.png", lambda path: figure.savefig(path, format="png", dpi=110))
    return folder / "scores.png"


def log(loggers: Iterable[Any], figure: Any, picture: Path, lines: list[list[Any]]) -> None:
    """Log picture and table with the loggers that can show them; without a step, because W&B's step must not fall."""
    for logger in loggers:
        if hasattr(logger, "log_image") and hasattr(logger, "log_table"):  # W&B
            logger.log_image("score/heatmap", [str(picture)])
            logger.log_table("score/table", HEADER, lines)
        elif hasattr(logger.experiment, "add_figure"):  # TensorBoard
            logger.experiment.add_figure("score/heatmap", figure)


def draw(rows: list[Scored], title: str, score: str) -> Any:
    """Draw a matplotlib figure: blocks by kinds of layer or, for scores of channels, blocks by channels.

    Args:
        rows: Scored tensors or blocks, in model order.
        title: One line above the picture.
        score: Name of the score, for the colour bar.
    """
    from matplotlib.figure import Figure  # not pyplot, because that would change the backend of a notebook
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout: Any = ConstrainedLayoutEngine(wspace=0.04)
    if any(row.channels is not None for row in rows):
        figure = Figure(figsize=(10, 1.6 + 0.3 * len(rows)), layout=layout)
        draw_channels(figure, rows, score)
    else:
        blocks, columns, mean, share, modules = cells(rows)
        width = 2.2 + 0.1 * max(map(len, blocks)) + 1.1 * len(columns)
        figure = Figure(figsize=(max(width, 7), 1.7 + 0.27 * len(blocks)), layout=layout)
        draw_cells(figure, blocks, columns, mean, share, modules, score)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure


# weights: blocks by kinds of layer


def place(name: str, norms: set[str]) -> tuple[str, str]:
    """Block and kind of layer of a tensor: ``blocks.1`` and ``fc1`` for ``blocks.1.mlp.fc1.weight``."""
    path, _, kind = name.rpartition(".")
    # a number at the end is a position in a Sequential, not the number of a block
    layer = re.sub(r"\.\d+$", "", path) if kind in ("weight", "bias") else name
    found = re.fullmatch(r"(.*\.\d+)\.(.+)", layer) or re.fullmatch(r"(.+)\.(.+)", layer)
    block, inside = found.groups() if found else (layer, layer)
    if path in norms:
        return block, "norms"
    return block, "biases" if kind == "bias" else inside.rpartition(".")[2]


def cells(rows: list[Scored]) -> tuple[list[str], list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Cells of the picture.

    Returns:
        Names of the blocks, names of the columns, and three arrays (blocks, columns): mean log10 score, selected
        percentage, and whether a module trains. Cells without a score are NaN.
    """
    norms = {r.name.removesuffix(".weight") for r in rows if r.name.endswith(".weight") and r.values.dim() == 1}
    places = [place(row.name, norms) for row in rows]
    # a layer of only one block, such as a stem, goes to the column "other"
    blocks_of: dict[str, set[str]] = {}
    for block, column in places:
        blocks_of.setdefault(column, set()).add(block)
    places = [(b, c if c in LAST or len(blocks_of[c]) > 1 else "other") for b, c in places]
    blocks = list(dict.fromkeys(block for block, _ in places))
    # columns have the order of the block with the most columns
    richest = max(blocks, key=lambda block: len({column for b, column in places if b == block}))
    columns = list(dict.fromkeys(c for _, c in sorted(places, key=lambda place: place[0] != richest)))
    columns = [c for c in columns if c not in LAST] + [c for c in LAST if c in columns]
    logs, positive, selected, numel = np.zeros((4, len(blocks), len(columns)))
    modules = np.zeros((len(blocks), len(columns)), dtype=bool)
    for row, (block, column) in zip(rows, places, strict=True):
        at = blocks.index(block), columns.index(column)
        found = row.values[row.values > 0]
        logs[at] += float(found.log10().sum(dtype=torch.float64))
        positive[at] += len(found)
        selected[at] += row.selected
        numel[at] += row.values.numel()
        modules[at] |= row.module
    with np.errstate(invalid="ignore"):
        return blocks, columns, logs / positive, 100 * selected / numel, modules


def draw_cells(
    figure: Any,
    blocks: list[str],
    columns: list[str],
    mean: np.ndarray,
    share: np.ndarray,
    modules: np.ndarray,
    score: str,
) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import FuncFormatter

    chosen = share[share > 0]
    low, high = (np.floor(np.log10(chosen.min())), np.log10(chosen.max())) if len(chosen) else (-1, 0)
    low = max(low, -3)
    norms = Normalize(np.nanmin(mean), np.nanmax(mean)), LogNorm(10**low, 10 ** max(np.ceil(high - 1e-6), low + 1))
    names = "mean score of a weight", "share of weights that is selected"
    maps = colormaps["viridis"], colormaps["YlOrRd"].with_extremes(under="0.93")
    for i, values in enumerate((mean, share)):
        axis = figure.add_subplot(1, 2, i + 1)
        # 0 % has no logarithm: it is drawn in grey, as a value below the range
        shown = np.where(values == 0, 10.0 ** (low - 1), values.clip(10.0**low)) if i else values
        mesh = axis.pcolormesh(np.ma.masked_invalid(shown), cmap=maps[i], norm=norms[i], edgecolor="w", linewidth=1)
        axis.set_title(names[i], fontsize=9, loc="left")
        axis.set_xticks(np.arange(len(columns)) + 0.5, columns, fontsize=8)
        axis.set_yticks(np.arange(len(blocks)) + 0.5, [] if i else blocks, fontsize=8)
        axis.tick_params(length=0)
        axis.invert_yaxis()
        axis.spines[:].set_visible(False)
        bar = figure.colorbar(mesh, ax=axis, aspect=30, pad=0.02)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8)
        bar.set_label("percent of the weights" if i else f"log10 of {score}", fontsize=8)
        if i:
            bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda percent, _: f"{percent:g}"))
            bar.ax.minorticks_off()
        for y, x in np.argwhere(np.isfinite(values)) if len(blocks) <= 16 else ():
            red, green, blue = maps[i](norms[i](shown[y, x]))[:3]
            color = "k" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "w"
            text = short(values[y, x]) if i else f"{values[y, x]:z.1f}"
            axis.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=7, color=color)
        for y, x in np.argwhere(modules) if i else ():
            axis.add_patch(Rectangle((x + 0.06, y + 0.08), 0.88, 0.84, fill=False, edgecolor="k", linewidth=1.4))
        if i and modules.any():
            axis.set_xlabel("outlined: a module trains in the place of weights", fontsize=8, loc="left")


def short(percent: float) -> str:
    """Percentage as text of at most five characters."""
    if 0 < percent < 0.01:
        return "<0.01"
    return "0" if percent == 0 else f"{percent:.2f}" if percent < 1 else f"{percent:.3g}"


# channels: blocks by channels


def draw_channels(figure: Any, rows: list[Scored], score: str) -> None:
    from matplotlib.colors import ListedColormap

    width = max(row.values.numel() for row in rows)
    scores, marks = np.full((len(rows), width), np.nan), np.full((3 * len(rows), width), np.nan)
    for i, row in enumerate(rows):
        scores[i, : row.values.numel()] = row.values.clamp(min=torch.finfo(torch.float32).tiny).log10().numpy()
        marks[3 * i + 2, : row.values.numel()] = 0  # the lowest third of a strip
        if row.channels is not None:
            marks[3 * i + 2, row.channels.numpy()] = 1
    axis = figure.add_subplot()
    place: dict[str, Any] = {"aspect": "auto", "extent": (0, width, len(rows), 0), "interpolation": "nearest"}
    image = axis.imshow(scores, cmap="viridis", **place)
    axis.imshow(marks, cmap=ListedColormap(["w", "crimson"]), vmin=0, vmax=1, **place)
    axis.set_title("importance of each channel; red below: selected", fontsize=9, loc="left")
    axis.set_yticks(np.arange(len(rows)) + 0.33, [row.name for row in rows], fontsize=8)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=8)
    axis.set_xlabel("channel", fontsize=8)
    axis.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axis, aspect=30, pad=0.01)
    bar.set_label(f"log10 of {score}", fontsize=8)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
