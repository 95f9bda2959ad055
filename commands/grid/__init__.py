"""Fit and test methods x tasks x seeds, or search the open values of a recipe, with any number of workers.

Options after -- are those of `python train.py fit`, with {method} and {task} replaced. Every cell of the product is
one such command line with a folder of its own in the study. A study is an Optuna journal file: the same command again
goes on where it stopped, runs failed cells again and finished cells never. `python train.py grid --study DIR --join`
is one more worker, on any machine that sees the folder.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from commands.grid.outcome import conclude
from commands.grid.plan import cells, searches, words
from commands.grid.queue import Queue
from commands.grid.workers import gpus, spread, submit
from commands.lightning.short_errors import ShortErrors


def seeds(text: str) -> list[int]:
    """Numbers separated by commas."""
    return [int(word) for word in words(text)]


OPTIONS: dict[str, dict[str, Any]] = {
    "--study": {
        "type": Path,
        "default": Path("runs/grid"),
        "metavar": "DIR",
        "help": "folder of all runs, of the journal and of the report (%(default)s)",
    },
    "--methods": {
        "type": words,
        "default": [],
        "metavar": "M,...",
        "help": "names of methods, or with --recipe names of recipes of the benchmark, separated by commas",
    },
    "--recipe": {
        "metavar": "BENCHMARK",
        "help": "vtab: method M is run with the recipe vtab/M, and so for each benchmark of `train.py recipes`; DIR: "
        "method M is run with your file DIR/M.yaml",
    },
    "--tasks": {
        "type": words,
        "default": [],
        "metavar": "T,...",
        "help": "T,...: values of --data.task, or of {task} where the options of fit contain it, separated by commas; "
        "all: every task of the data",
    },
    "--seeds": {"type": seeds, "default": [0], "metavar": "S,...", "help": "numbers separated by commas (0)"},
    "--over": {
        "action": "append",
        "default": [],
        "metavar": "KEY=V,...",
        "help": "one more axis of the product, such as data.shots=1,4,16; may be given several times",
    },
    "--search": {
        "nargs": "?",
        "type": int,
        "const": 0,
        "metavar": "N",
        "help": "search instead of the product: --search tries all points of the recipe's `grid` and of --over, "
        "--search N lets TPE choose N of them; the best by the validation metric are written as recipes, or without a "
        "--recipe as configs, DIR/chosen/METHOD.yaml",
    },
    "--prune": {
        "action": "store_true",
        "help": "with --search: end a fit whose best validation metric so far is worse than the median of the finished "
        "fits after the same epoch; the first five run to their end",
    },
    "--workers": {
        "type": int,
        "metavar": "N",
        "help": "processes on this machine, each on one GPU in turn (as many as GPUs, or one)",
    },
    "--join": {"action": "store_true", "help": "only work on a study that is planned already, until nothing is left"},
    "--slurm": {
        "nargs": "*",
        "metavar": "KEY=VALUE",
        "help": "submit the workers as a job array, with parameters of submitit, such as --slurm timeout_min=600 "
        "gpus_per_node=1",
    },
    "--retries": {
        "type": int,
        "default": 2,
        "metavar": "N",
        "help": "how often a cell that fails is tried again (%(default)s)",
    },
    "--stale_after": {
        "type": float,
        "default": 120.0,
        "metavar": "S",
        "help": "seconds without a sign of life after which a worker counts as dead (%(default)s)",
    },
}


def main(args: list[str]) -> None:
    """Plan the cells that are not in the study yet, then work on it.

    Args:
        args: Options of this command, then ``--`` and options of ``fit``.

    Raises:
        ValueError: If a name is unknown, or the study holds a cell with other options.
        SystemExit: With code 1 if cells have failed.
    """
    own, options = take_options(args)
    queue = Queue(own.study)
    if own.join:
        queue.work()
        return
    if own.methods:
        queue.plan(*(searches if own.search is not None else cells)(own, options), own.retries, own.stale_after)
    elif not queue.names() or options:
        raise ValueError(f"--study {own.study} has nothing planned: name --methods, then -- and the options of fit")
    workers = own.workers or max(1, len(gpus()))
    if own.slurm is not None:
        submit(own.study, workers, own.slurm)
        return
    if workers == 1:
        queue.work()
    else:
        spread(own.study, workers)
    sys.exit(conclude(queue))


def take_options(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options of this command, and the words after ``--``."""
    parser = ShortErrors(
        "train.py grid",
        usage="train.py grid --methods M,... [options] -- [options of fit]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for flag, settings in OPTIONS.items():
        parser.add_argument(flag, **settings)
    place = args.index("--") if "--" in args else len(args)
    return parser.parse_args(args[:place]), args[place + 1 :]
