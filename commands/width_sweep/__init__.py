"""Sweep learning rates over widths and parameterizations, and plot how the optimum drifts."""

import hashlib
from itertools import product
from pathlib import Path

from commands.lightning.names import nearest
from commands.width_sweep.numbers import listed, numbers
from commands.width_sweep.outcome import report
from commands.width_sweep.points import KEY, NO_PARAMETERIZATION, describe, key, label, read, train, write
from commands.width_sweep.summary import summarise
from commands.width_sweep.widths import check_widths

CONFIG = "configs/sweep/width.yaml"


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
    goes on, and another width or rate only adds its own runs. ``summary.json`` and ``sweep.png`` show the points that
    this command names: the best rate of every width, its drift in octaves per octave of width, the largest rate with a
    loss below chance, and the loss that the best rate of the smallest width costs at each larger one.

    Args:
        widths: Embedding widths separated by commas; the smallest is the base width.
        lrs: Learning rates at the base width.
        parameterizations: Rules for the rates and initial weights of each width, separated by commas. ``none``: one
            rate for all layers and initial weights as timm draws them; ``standard``, ``ntk``, ``mup``, ``mean_field``:
            those of width_scaling (``fit --model.help``).
        alignments: How updates align with the features, for all parameterizations but ``none``. ``full``: they do;
            ``none``: they do not; ``full,none``: both are tried.
        optimizer: ``adamw``, ``adam``, ``sgd`` (momentum 0.9), ``adam_atan2`` (AdamW without epsilon) or ``adafactor``
            (steps in proportion to the parameters).
        seeds: Seeds; losses are means over them.
        head_dim: Width of an attention head, the same at all widths.
        fit_config: Configuration of everything else, as for ``fit``.
        output: Folder of the table, the plot and the run folders.
    """
    from rich.console import Console

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
