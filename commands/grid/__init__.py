"""Fit and test methods x tasks x seeds, or search what a recipe leaves open, with any number of workers.

Options after -- are those of `python train.py fit`, with {method} and {task} replaced. Every cell of the product is
one such command line with a folder of its own in the study. A study is an Optuna journal file: the same command again
goes on where it stopped, runs what failed again and what is finished never, and `python train.py grid --study DIR
--join` is one more worker of it, on any machine that sees the folder.
"""

import argparse
import sys
from pathlib import Path

from commands.grid.plan import cells, searches, words
from commands.grid.queue import Queue
from commands.grid.workers import gpus, spread, submit


def grid(args: list[str]) -> None:
    """Plan what is not in the study yet, then work on it.

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
    sys.exit(queue.conclude())


def take_options(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options of this command, and what stands after ``--``."""
    names = "names separated by commas"
    parser = argparse.ArgumentParser(
        "train.py grid",
        usage="train.py grid --methods M,... [options] -- [options of fit]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--study", type=Path, default=Path("runs/grid"), metavar="DIR", help="folder of everything (%(default)s)")
    add("--methods", type=words, default=[], metavar="M,...", help=f"{names}; with --recipe those of its files")
    add("--recipe", metavar="BENCHMARK", help="`vtab` gives each method vtab/METHOD; a folder of yours DIR/METHOD.yaml")
    add("--tasks", type=words, default=[], metavar="T,...", help=f"{names} for --data.task or {{task}}, or all")
    add("--seeds", type=seeds, default=[0], metavar="S,...", help="numbers separated by commas (0)")
    add("--over", action="append", default=[], metavar="KEY=V,...", help="one more axis, such as data.shots=1,4,16")
    text = "instead of the product: try all points of the recipes' `grid`, or N that TPE picks, choose by validation "
    add("--search", nargs="?", type=int, const=0, metavar="N", help=f"{text}accuracy, write DIR/chosen/METHOD.yaml")
    add("--workers", type=int, metavar="N", help="processes here, one GPU each in turn (as many as GPUs, or one)")
    add("--join", action="store_true", help="only work on a planned study, until nothing is left")
    text = "submit the workers as a job array, with parameters of submitit: --slurm timeout_min=600 gpus_per_node=1"
    add("--slurm", nargs="*", metavar="KEY=VALUE", help=text)
    add("--retries", type=int, default=2, metavar="N", help="how often a cell that fails is tried again (%(default)s)")
    text = "after how many silent seconds a worker counts as dead (%(default)s)"
    add("--stale_after", type=float, default=120.0, metavar="S", help=text)
    place = args.index("--") if "--" in args else len(args)
    return parser.parse_args(args[:place]), args[place + 1 :]


def seeds(text: str) -> list[int]:
    return [int(word) for word in words(text)]
