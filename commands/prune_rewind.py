"""Fit, score the prompts, prune them and fit the rest anew from its first values, then test.

All other options are those of `python train.py fit` (--help). Every step is a command line of its own, which is
printed; --resume RUN goes on where a run of the same command line stopped, and does no step twice.
"""

import argparse
import hashlib
import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    parser = argparse.ArgumentParser(
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
        help="prune by the method's own percentages, or fit with all pairs of 10 to 90 percent and keep the pair with "
        "the best validation accuracy after the last epoch",
    )
    parser.add_argument(
        "--rewind",
        choices=["initial", "fresh"],
        default="initial",
        help="begin the second fit from the first one's initial values, or from new ones of the next seed",
    )
    own, options = parser.parse_known_args(args)
    run = Run(own.resume, options, f"{own.search} {own.rewind}")
    # as published, the last epoch counts and not the best one
    options = [*run.options, "--checkpoint.monitor=null"]

    callback = [f"--trainer.callbacks+={CALLBACK}", f"--trainer.callbacks.initial={run.folder / 'initial.safetensors'}"]
    first = run.step("fit", ["fit", *options, *callback])
    seed = []
    if own.rewind == "fresh":
        callback, seed = callback[:1], [f"--seed_everything={first['seed'] + 1}"]
    callback += [f"--trainer.callbacks.fitted={first['checkpoint']}", f"--trainer.callbacks.cache_dir={run.folder}"]
    fits = {}
    for name, pruned in points(first, own.search).items():
        plan = f"--trainer.callbacks.plan={run.folder / f'{name}.json'}"
        fits[name] = run.step(name, ["fit", *options, *seed, *pruned, *callback, plan]) | {"options": pruned}
    # max takes the first of equals, and the points begin with the most pruned
    best = max(fits, key=lambda name: fits[name].get("val/acc1", 0.0))
    checkpoint = ["--ckpt_path", fits[best]["checkpoint"]]
    tested = run.step("test", ["test", *options, *seed, *fits[best]["options"], *checkpoint])
    run.report({"fit": first, best: fits[best] | {k: v for k, v in tested.items() if k.startswith("test/")}})


def points(first: dict[str, Any], search: str) -> dict[str, list[str]]:
    """Names of second fits and the options with which they prune, the most pruned first."""
    if search == "none":
        return {"rewind": []}
    from checkpoints.delta import read_checkpoint
    from methods.e2vpt import E2VPT, fewer

    saved = read_checkpoint(first["checkpoint"])["hyper_parameters"]
    sizes = ((saved["prompt_length"], 1), (saved["prompt_segments"], E2VPT.fewest_segments))
    # of percentages that prune the same number, one is enough
    tokens, segments = ({fewer(size, p, least): p for p in PERCENTAGES} for size, least in sizes)
    return {
        f"tokens{t}_segments{s}": [f"--model.prune_tokens={tokens[t]}", f"--model.prune_segments={segments[s]}"]
        for t in sorted(tokens, reverse=True)
        for s in sorted(segments, reverse=True)
    }


class Run:
    """The folder of all steps, and ``state.json`` in it: options, and what came out of every finished step.

    Args:
        folder: Folder of a run to go on with, or none for a new one.
        options: Options of all steps.
        kind: What else must be the same when a run goes on.
    """

    def __init__(self, folder: Path | None, options: list[str], kind: str) -> None:
        from commands.lightning.arguments import pop_flag
        from commands.lightning.runs import run_folder

        if pop_flag(options, "--ckpt_path")[0] is not None:
            raise ValueError("prune_rewind fits from the start: expected --resume RUN instead of --ckpt_path")
        root, rest = pop_flag(options, "--run_root")
        self.done: dict[str, dict[str, Any]] = {}
        if folder is not None:
            state = read_state(folder)
            if [state["options"], state["kind"]] != [rest, kind]:
                was = shlex.join(state["options"])
                raise ValueError(
                    f"--resume {folder} was begun with other options: {was} ({state['kind']}). Repeat them"
                )
            self.done = state["done"]
        else:
            digest = hashlib.sha256(repr((rest, kind)).encode()).hexdigest()[:8]
            folder = run_folder(Path(root or "runs") / "prune_rewind" / digest)
        self.folder, self.options, self.kind = folder.resolve(), rest, kind
        self.write()

    def write(self) -> None:
        from checkpoints.atomic import write_atomically

        text = json.dumps({"options": self.options, "kind": self.kind, "done": self.done}, indent=2)
        write_atomically(self.folder / "state.json", lambda path: path.write_text(text))

    def step(self, name: str, args: list[str]) -> dict[str, Any]:
        """What came out of a step: done before, gone on with or begun now."""
        if name in self.done:
            print(f"{name}: done before")
            return self.done[name]
        root = self.folder / name
        stopped = newest(root, "checkpoints/last.ckpt") if args[0] == "fit" else None
        if stopped is not None:
            args = [*args, "--ckpt_path", str(stopped)]
        args = [*args, "--run_root", str(root)]
        print(f"{name}: python train.py {shlex.join(args)}", flush=True)
        code = launch(args)
        if code:
            print(f"{name} stopped; to go on, repeat the command with --resume {self.folder}", file=sys.stderr)
            sys.exit(code)
        result = newest(root, "result.json")
        assert result is not None, f"{root} holds no result"
        outcome = json.loads(result.read_text()) | {"folder": str(result.parent)}
        outcome["checkpoint"] = str(result.parent / "checkpoints/last.ckpt")
        self.done[name] = outcome
        self.write()
        return outcome

    def report(self, outcomes: dict[str, dict[str, Any]]) -> None:
        from rich.console import Console
        from rich.table import Table

        table = Table(title=f"prune_rewind in {self.folder}", title_justify="left")
        columns = ("cost/trainable_params", "cost/trainable_params_no_head", "val/acc1", "test/acc1")
        for column in ("fit", *(column.rpartition("/")[2] for column in columns[:2]), *columns[2:]):
            table.add_column(column)
        for name, outcome in outcomes.items():
            values = [outcome.get(column) for column in columns]
            shown = [f"{v:,}" if isinstance(v, int) else "-" if v is None else f"{v:.4g}" for v in values]
            table.add_row(name, *shown)
        Console().print(table)


def read_state(folder: Path) -> dict[str, Any]:
    try:
        state = json.loads((folder / "state.json").read_text())
        return {name: state[name] for name in ("options", "kind", "done")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--resume {folder}: expected the folder of a prune_rewind run with its state.json") from error


def newest(root: Path, file: str) -> Path | None:
    """The newest of the files of this name in the run folders below ``root``."""
    found = sorted(root.glob(f"*/*/*/{file}"), key=lambda path: path.stat().st_mtime_ns)
    return found[-1] if found else None


def launch(args: list[str]) -> int:
    """Exit code of ``train.py`` in a process of its own, so that a step on many devices leaves nothing behind."""
    entry = Path(__file__).resolve().parent.parent / "train.py"
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the step too
    try:
        return subprocess.run([sys.executable, str(entry), *args]).returncode
    finally:
        signal.signal(signal.SIGTERM, before)
