"""Plan of a study: the cells of a product or of searches, each one command line of ``fit``."""

import argparse
import itertools
import re
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from pydoc import locate
from typing import Any

import yaml

from commands.lightning.arguments import pop_flag
from commands.lightning.names import nearest
from commands.lightning.recipes import read_recipe

SET_BY_GRID = ("--run_root", "--seed_everything", "--ckpt_path", "--method", "--recipe", "--data.task")


@dataclass
class Cell:
    """One command line.

    Args:
        study: Name of the Optuna study it is a trial of.
        name: Its folder in the study's folder.
        args: The command line without the run folder.
        about: Label, task and seed in a report.
        values: Options that a search tries.
    """

    study: str
    name: str
    args: list[str]
    about: dict[str, Any]
    values: dict[str, Any] = field(default_factory=dict)


def cells(own: argparse.Namespace, options: list[str]) -> tuple[list[Cell], dict[str, Any]]:
    """Every combination of method, task, other axes and seed."""
    axes, found = axes_of(own), []
    for label, task, *values, seed in itertools.product(own.methods, tasks_of(own, options), *axes.values(), own.seeds):
        over = dict(zip(axes, values, strict=True))
        named = [f"{key.rpartition('.')[2]}={value}" for key, value in over.items()]
        # a row of the report for each model; axes of the data are columns, which the report reads from the results
        model = [name for name, key in zip(named, over, strict=True) if key.startswith("model.")]
        args = command(own, options, label, task, ["--test_after_fit=true"])
        args += [f"--{key}={value}" for key, value in over.items()] + [f"--seed_everything={seed}"]
        about = {"label": " ".join([label, *model]), "task": task, "seed": seed}
        found.append(Cell("grid", folder_of(label, task, *named, f"s{seed}"), args, about))
    return found, {}


def axes_of(own: argparse.Namespace) -> dict[str, list[str]]:
    """Values of each option of ``--over``."""
    axes = {}
    for axis in own.over:
        key, _, values = axis.partition("=")
        if not words(values):
            nearest(axis, ["KEY=V,..."], "--over")
        axes[key.removeprefix("--")] = words(values)
    return axes


def searches(own: argparse.Namespace, options: list[str]) -> tuple[list[Cell], dict[str, Any]]:
    """Every point of a grid for each method and task; with a budget, as many points for TPE to choose.

    The grid is that of the recipe, and what ``--over`` names; without a recipe that alone.
    """
    import datamodules

    over = {key: [typed(word) for word in values] for key, values in axes_of(own).items()}
    if own.recipe is None and not over:
        raise ValueError("--search needs values: a --recipe with a `grid`, or --over model.lr=0.001,0.01")
    found, grids = [], {}
    for label, task in itertools.product(own.methods, tasks_of(own, options)):
        name = None if own.recipe is None else recipe_of(own.recipe, label)
        recipe = read_recipe(name) if name is not None else {}
        values = {key: list(points) for key, points in recipe.get("grid", {}).items()} | over
        if not values:
            raise ValueError(
                f"--recipe {own.recipe}: {label} has no `grid` of options; name values, --over model.lr=0.001,0.01"
            )
        if any(key.startswith("data.") for key in values):
            raise ValueError("--search compares options on the same validation images; it cannot try options of data")
        args = [*command(own, options, label, task, []), f"--seed_everything={own.seeds[0]}"]
        if hasattr(getattr(datamodules, recipe.get("data", ""), None), "lists"):
            args.append("--data.split=tune")  # last, so that it wins: test images choose nothing
        place = folder_of("search", label, task)
        grids[place] = {"grid": values, "recipe": name, "label": label, "task": task, "prune": own.prune}
        points = [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]
        for number, point in enumerate([{}] * own.search if own.search else points):
            about = {"label": label, "task": task, "seed": own.seeds[0]}
            found.append(Cell(place, f"{place}/{number}", args, about, point))
    return found, grids


def command(own: argparse.Namespace, options: list[str], label: str, task: str | None, more: list[str]) -> list[str]:
    """A command line without its seed."""
    from methods import METHODS

    taken = [flag for flag in SET_BY_GRID if pop_flag(options, flag)[0] is not None]
    if taken:
        raise ValueError(f"{taken[0]} after --: the grid sets it, see `python train.py grid --help`")
    if own.recipe is None:
        what = ["--method", "+".join(nearest(name, METHODS, "method") for name in label.split("+"))]
    else:
        what = ["--recipe", recipe_of(own.recipe, label)]
    placed = [option.replace("{method}", label).replace("{task}", task or "") for option in options]
    place = task is not None and not any("{task}" in option for option in options)
    return ["fit", *what, *more, *placed, *([f"--data.task={task}"] if place else [])]


def recipe_of(benchmark: str, label: str) -> str:
    return f"{benchmark}/{label}.yaml" if Path(benchmark).is_dir() else f"{benchmark}/{label}"


def tasks_of(own: argparse.Namespace, options: list[str]) -> list[str | None]:
    """Names of the tasks, without aliases: those of ``--tasks``, or None for data without tasks."""
    import datamodules

    name = pop_flag(options, "--data")[0]
    if name is None and own.recipe is not None:
        name = read_recipe(recipe_of(own.recipe, own.methods[0]))["data"]
    data = getattr(datamodules, (name or "").rpartition(".")[2], None)
    known = dict.fromkeys(getattr(data, "tasks", {}))
    if own.tasks == ["all"]:
        if not known:
            raise ValueError("--tasks all: say which data, by --recipe or by --data after --")
        return list(known)
    names = [getattr(data, "aliases", {}).get(task, task) for task in own.tasks]
    return [nearest(task, known, "task") if known else task for task in names] or [None]


def words(text: str) -> list[str]:
    return list(dict.fromkeys(word for word in text.split(",") if word))


def typed(word: str) -> Any:
    """Value that a word stands for; YAML takes 1e-4, which has no dot, for a text."""
    return float(word) if re.fullmatch(r"[+-]?\d+[eE][+-]?\d+", word) else yaml.safe_load(word)


def folder_of(*names: str | None) -> str:
    return "/".join(re.sub(r"[^\w.=+-]+", "_", name) for name in names if name is not None)


def check(args: list[str]) -> dict[str, Any]:
    """Parse a command line, so that a mistake in it stops the command before anything is queued.

    Returns:
        Name, direction, label and scale of the metric by which its task is judged.

    Raises:
        SystemExit: If the command line cannot be read.
    """
    from commands.lightning.cli import GraftCLI

    text = StringIO()
    try:
        with redirect_stdout(text):
            GraftCLI.run([*args, "--print_config"])
    except SystemExit as stop:
        if stop.code:
            raise
    model: Any = locate(yaml.safe_load(text.getvalue())["model"]["class_path"])
    metric: dict[str, Any] = model.headline._asdict()
    return metric
