"""Outcome of a study: the cells that are missing, the choices of searches, and the report."""

from pathlib import Path
from typing import Any

import yaml

from commands import report
from commands.grid.queue import FINISHED, Queue, write
from commands.lightning.recipes import read_recipe


def conclude(queue: Queue) -> int:
    """Print missing cells, choices and the report.

    Returns:
        The exit code: 1 if a cell is missing.
    """
    cells: dict[str, list[Any]] = {}
    for _, trial in queue.trials(*FINISHED, "FAIL", "WAITING", "RUNNING"):
        cells.setdefault(trial.user_attrs["cell"], []).append(trial)
    missing = {name: t[-1] for name, t in cells.items() if all(trial.state.name not in FINISHED for trial in t)}
    for name, trial in missing.items():
        print(f"missing: {name}: {trial.user_attrs.get('error', 'not finished')}")
    chosen, configs = choose(queue), choose_values(queue)
    print(f"{len(cells) - len(missing)} of {len(cells)} finished in {queue.folder}")
    if chosen:
        names = ", ".join(c.stem for c in chosen)
        print(f"chosen by the validation metric: --recipe {chosen[0].parent} ({names})")
    for config in configs:
        print(f"chosen by the validation metric: --config {config}")
    if "grid" in queue.names():
        report.main([str(queue.folder)])
    return int(bool(missing))


def best_points(queue: Queue) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Attributes of each search, and its best point."""
    found = []
    for name in queue.names():
        study = queue.study(name)
        finished = [t for t in study.trials if t.state.name == "COMPLETE" and t.value is not None]
        if "grid" not in study.user_attrs or not finished:
            continue
        sign = 1 if study.direction.name == "MAXIMIZE" else -1
        # among equals the smallest learning rate, as in VPT's search
        best = max(finished, key=lambda t: (sign * (t.value or 0.0), -t.params.get("model.lr", 0.0)))
        found.append((study.user_attrs, best.params))
    return found


def choose_values(queue: Queue) -> list[Path]:
    """Write the best point of each search without a recipe as a config, ``chosen/METHOD.yaml`` or ``METHOD_TASK.yaml``.

    Returns:
        The files.
    """
    written = []
    for about, best in best_points(queue):
        if about["recipe"] is not None:
            continue
        config: dict[str, Any] = {}
        for key, value in best.items():
            *groups, option = key.replace("model.", "model.init_args.", 1).split(".")
            inner = config
            for group in groups:
                inner = inner.setdefault(group, {})
            inner[option] = value
        file = queue.folder / "chosen" / f"{'_'.join(filter(None, [about['label'], about['task']]))}.yaml"
        head = f"# python train.py fit --method {about['label']} --config {file} ...\n"
        head += f"# chosen by the validation metric in {queue.folder}\n"
        write(file, head + yaml.safe_dump(config, sort_keys=False))
        written.append(file)
    return written


def choose(queue: Queue) -> list[Path]:
    """Write the best point of each search as a recipe, ``chosen/METHOD.yaml``.

    Returns:
        The files.
    """
    recipes: dict[str, dict[str, Any]] = {}
    for about, best in best_points(queue):
        if about["recipe"] is None:
            continue
        label, task = about["label"], about["task"]
        if label not in recipes:
            recipes[label] = {k: v for k, v in read_recipe(about["recipe"]).items() if k not in ("grid", "tasks")}
        published = read_recipe(about["recipe"]).get("tasks", {}).get(task, {})
        if task is None:
            recipes[label]["all"] = recipes[label].get("all", {}) | best
        else:
            recipes[label].setdefault("tasks", {})[task] = published | best
    written = []
    for label, recipe in recipes.items():
        file = queue.folder / "chosen" / f"{label}.yaml"
        head = f"# python train.py grid --recipe {file.parent} --methods {label} --tasks ... -- --data.root DIR\n"
        head += f"# chosen by the validation metric in {queue.folder}\n"
        write(file, head + yaml.safe_dump(recipe, sort_keys=False))
        written.append(file)
    return written
