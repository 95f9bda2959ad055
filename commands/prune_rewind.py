"""Fit, score the prompts, prune them and fit the rest again from its first values, then test.

All other options are those of `python train.py fit` (--help). Every step is a command line of its own, which is
printed. --resume RUN continues a run of the same command line at the step where it stopped.
"""

import argparse
import hashlib
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from commands.lightning.arguments import pop_flag
from commands.lightning.errors import Failed
from commands.lightning.folders import run_folder
from commands.lightning.runs import finished, run_once
from commands.lightning.short_errors import ShortErrors
from commands.lightning.used_by import used_flags
from commands.report.runs import metric_of

CALLBACK = "callbacks.scoring.rewind.Rewind"
PERCENTAGES = range(10, 100, 10)


def main(args: list[str]) -> None:
    """Run the steps of one command line.

    Args:
        args: Options of this command and of ``fit``.

    Raises:
        ValueError: If RUN was begun with other options.
        SystemExit: If a step fails or is stopped, with its code.
    """
    own, options = take_options(args)
    run = Run(own.resume, options, f"{own.search} {own.rewind}")
    # as published, the last epoch counts and not the best one
    fit = ["fit", *run.options, "--checkpoint.monitor=null"]
    callback = [f"--trainer.callbacks+={CALLBACK}", f"--trainer.callbacks.initial={run.folder / 'initial.safetensors'}"]
    first = run.step("fit", [*fit, *callback])
    seed = []
    if own.rewind == "fresh":
        callback, seed = callback[:1], [f"--seed_everything={first['seed'] + 1}"]
    callback += [f"--trainer.callbacks.fitted={first['checkpoint']}", f"--trainer.callbacks.cache_dir={run.folder}"]
    fits = {}
    for name, pruned in points(first, own.search).items():
        plan = f"--trainer.callbacks.plan={run.folder / f'{name}.json'}"
        fits[name] = run.step(name, [*fit, *seed, *pruned, *callback, plan]) | {"options": pruned}
    best = best_of(fits)
    checkpoint = ["--ckpt_path", fits[best]["checkpoint"]]
    options = used_flags("test", [*run.options, *seed, *fits[best]["options"]])
    tested = run.step("test", ["test", *options, *checkpoint])
    run.report({"fit": first, best: fits[best] | {k: v for k, v in tested.items() if k.startswith("test/")}})


def take_options(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options of this command, and all others."""
    parser = ShortErrors(
        "train.py prune_rewind",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--resume", type=Path, metavar="RUN", help="run folder of a run to go on with")
    parser.add_argument(
        "--search",
        choices=["none", "grid"],
        default="none",
        help="none: prune by the percentages of the method's own options; grid: fit with all pairs of 10 to 90 percent "
        "and keep the pair with the best validation metric after the last epoch",
    )
    parser.add_argument(
        "--rewind",
        choices=["initial", "fresh"],
        default="initial",
        help="initial: the second fit begins from the initial values of the first; fresh: from new values of the next "
        "seed",
    )
    return parser.parse_known_args(args)


def points(first: dict[str, Any], search: str) -> dict[str, list[str]]:
    """Names of second fits and the options with which they prune, the most pruned first."""
    if search == "none":
        return {"rewind": []}
    from checkpoints.delta import read_checkpoint
    from methods.e2vpt import E2VPT, fewer

    saved = read_checkpoint(first["checkpoint"])["hyper_parameters"]
    sizes = ((saved["prompt_length"], 1), (saved["prompt_segments"], E2VPT.fewest_segments))
    # one of the percentages that prune an equal number is enough
    tokens, segments = ({fewer(size, p, least): p for p in PERCENTAGES} for size, least in sizes)
    return {
        f"tokens{t}_segments{s}": [f"--model.prune_tokens={tokens[t]}", f"--model.prune_segments={segments[s]}"]
        for t in sorted(tokens, reverse=True)
        for s in sorted(segments, reverse=True)
    }


def best_of(fits: dict[str, dict[str, Any]]) -> str:
    """Name of the fit with the best validation metric; among equals the most pruned, which is the first."""
    metric = metric_of(next(iter(fits.values())))
    key, sign = f"val/{metric['name']}", 1 if metric["higher_is_better"] else -1
    return max(fits, key=lambda name: sign * fits[name].get(key, -sign * float("inf")))


class Run:
    """The folder of all steps, with their options in ``state.json``.

    Args:
        folder: Folder of a run to go on with, or none for a new one.
        options: Options of all steps.
        kind: Options of this command, which must be the same when a run goes on.
    """

    def __init__(self, folder: Path | None, options: list[str], kind: str) -> None:
        if pop_flag(options, "--ckpt_path")[0] is not None:
            raise ValueError("prune_rewind fits from the start: expected --resume RUN instead of --ckpt_path")
        root, rest = pop_flag(options, "--run_root")
        if folder is not None:
            refuse_others(folder, rest, kind)
        else:
            digest = hashlib.sha256(repr((rest, kind)).encode()).hexdigest()[:8]
            folder = run_folder(Path(root or "runs") / "prune_rewind" / digest)
        self.folder, self.options = folder.resolve(), rest
        if not (self.folder / "state.json").exists():
            write(self.folder / "state.json", json.dumps({"options": rest, "kind": kind}, indent=2))

    def step(self, name: str, args: list[str]) -> dict[str, Any]:
        """Result of a step, which has finished before, goes on or begins now; with its ``checkpoint``.

        Raises:
            SystemExit: If the step fails or is stopped, with its code.
        """
        root = self.folder / name
        if finished(root, tested=args[0] == "test") is not None:
            print(f"{name}: done before")
        else:
            print(f"{name}: python train.py {shlex.join(args)}", flush=True)
        try:
            result = run_once(args, root, resume=True)
        except Failed as failure:
            print(f"{name} stopped; to go on, repeat the command with --resume {self.folder}", file=sys.stderr)
            sys.exit(failure.code)
        return result | {"checkpoint": f"{result['folder']}/checkpoints/last.ckpt"}

    def report(self, outcomes: dict[str, dict[str, Any]]) -> None:
        """Print a table with a row for each fit."""
        from rich.console import Console
        from rich.table import Table

        metric = metric_of(next(iter(outcomes.values())))["name"]
        table = Table(title=f"prune_rewind in {self.folder}", title_justify="left")
        columns = ("cost/trainable_params", "cost/trainable_params_method", f"val/{metric}", f"test/{metric}")
        for column in ("fit", *(column.rpartition("/")[2] for column in columns[:2]), *columns[2:]):
            table.add_column(column)
        for name, outcome in outcomes.items():
            values = [outcome.get(column) for column in columns]
            shown = [f"{v:,}" if isinstance(v, int) else "-" if v is None else f"{v:.4g}" for v in values]
            table.add_row(name, *shown)
        Console().print(table)


def refuse_others(folder: Path, options: list[str], kind: str) -> None:
    """Refuse to go on with a run that was begun with other options.

    Raises:
        ValueError: If the options differ, or if the folder is no run of this command.
    """
    try:
        state = json.loads((folder / "state.json").read_text())
        before = state["options"], state["kind"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--resume {folder}: expected the folder of a prune_rewind run with its state.json") from error
    if before != (options, kind):
        raise ValueError(
            f"--resume {folder} was begun with other options: {shlex.join(before[0])} ({before[1]}). Repeat them"
        )


def write(path: Path, text: str) -> None:
    """Write a file as a whole."""
    from checkpoints.atomic import write_atomically

    write_atomically(path, lambda temporary: temporary.write_text(text))
