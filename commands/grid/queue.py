"""Who does it: waiting cells in an Optuna journal, which workers take, run, and take over from dead ones."""

import datetime
import gc
import hashlib
import itertools
import json
import logging
import shlex
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from commands.grid.plan import Cell, check, folder_of

if TYPE_CHECKING:
    from optuna import Study, Trial

ENTRY = Path(__file__).resolve().parents[2] / "train.py"


class Queue:
    """The cells of a study as trials of Optuna.

    They are queued one by one, as waiting trials that a worker takes atomically: GridSampler alone would take a failed
    point for a visited one, and with several workers runs the last ones twice. A journal file has no heartbeat, so each
    worker touches a file of its trial.

    Args:
        folder: Folder of the study.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import optuna
        except ImportError as error:
            raise ValueError("grid needs optuna: pip install optuna (or `.[grid]` of this project)") from error
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.optuna = folder.resolve(), optuna
        (self.folder / "alive").mkdir(exist_ok=True)
        self.storage = JournalStorage(JournalFileBackend(str(self.folder / "journal.log")))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other process plans or takes over meanwhile; the lock of a killed one is broken after two minutes."""
        from optuna.storages.journal import JournalFileSymlinkLock

        lock = JournalFileSymlinkLock(str(self.folder / "plan"), grace_period=120)
        lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def names(self) -> list[str]:
        return [study.study_name for study in self.storage.get_all_studies()]

    def study(self, name: str) -> "Study":
        return self.optuna.load_study(study_name=name, storage=self.storage)

    def trials(self, *states: str) -> list[tuple["Study", Any]]:
        """Trials of cells in these states, of all studies."""
        studies = [self.study(name) for name in self.names()]
        found = [(study, trial) for study in studies for trial in study.get_trials(deepcopy=False)]
        return [(study, t) for study, t in found if t.state.name in states and "cell" in t.user_attrs]

    def plan(self, planned: list[Cell], grids: dict[str, Any], retries: int, stale_after: float) -> None:
        """Queue what is neither finished nor on its way.

        Raises:
            ValueError: If the study holds one of the cells with other options.
        """
        known = {t.user_attrs["cell"]: t.user_attrs for _, t in self.trials("WAITING", "RUNNING", "COMPLETE")}
        for cell in planned:
            other = known.get(cell.name)
            if other is not None and (other["args"], other["values"]) != (cell.args, cell.values):
                raise ValueError(
                    f"--study {self.folder} holds {cell.name} with other options: {shlex.join(other['args'])}. "
                    "Repeat them, or name another --study"
                )
        new = {cell.about["label"]: cell.args for cell in planned if cell.name not in known}
        for args in new.values():
            check(args)
        for cell in planned:
            if cell.study == "grid" and cell.name not in known:
                write(self.folder / cell.name / "cell.json", json.dumps(cell.about, indent=2))
        with self.alone():
            there = {t.user_attrs["cell"] for _, t in self.trials("WAITING", "RUNNING", "COMPLETE")}
            for name, cells in itertools.groupby(planned, lambda cell: cell.study):
                study = self.optuna.create_study(
                    study_name=name, storage=self.storage, direction="maximize", load_if_exists=True
                )
                for key, value in {"stale_after": stale_after, **grids.get(name, {})}.items():
                    study.set_user_attr(key, value)
                for cell in cells:
                    if cell.name not in there:
                        attrs = {"cell": cell.name, "args": cell.args, "values": cell.values, "left": retries}
                        study.enqueue_trial(cell.values, user_attrs=attrs)

    def work(self) -> None:
        """Take cells until none waits and none runs: one that runs elsewhere may yet come back."""
        from backbones.timm_models import shared_backbone
        from datamodules.pixels import shared_pixels

        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            with shared_backbone(), shared_pixels():
                while True:
                    self.take_over()
                    waiting, running = self.trials("WAITING"), self.trials("RUNNING")
                    if waiting:
                        self.take(waiting[0][0])
                    elif running:
                        time.sleep(min(10.0, min(study.user_attrs["stale_after"] for study, _ in running) / 4))
                    else:
                        break
        finally:
            signal.signal(signal.SIGTERM, before)

    def take(self, study: "Study") -> None:
        """Run the next trial of a study, if another worker was not faster."""
        from optuna.trial import TrialState

        trial = study.ask()
        attrs = trial.user_attrs
        if "cell" not in attrs:  # none waited any more, and ask made a new one
            study.tell(trial, state=TrialState.PRUNED)
            return
        start = time.perf_counter()
        with self.alive(study, trial):
            try:
                value = self.run(study, trial)
            except Failed as failure:
                trial.set_user_attr("error", str(failure))
                self.fail(study, trial.number, attrs, attrs["left"] - 1)
                print(f"{attrs['cell']}: {failure}; {attrs['left']} more tries", flush=True)
                return
            except BaseException:  # stopped by the user or the cluster: that is no try
                self.fail(study, trial.number, attrs, attrs["left"])
                raise
            with self.alone():
                study.tell(trial, value, skip_if_finished=True)
        done, rest = len(self.trials("COMPLETE")), len(self.trials("WAITING", "RUNNING"))
        seconds = time.perf_counter() - start
        print(f"[{done}/{done + rest}] {attrs['cell']}: {100 * value:.2f} ({seconds:.0f} s)", flush=True)

    def fail(self, study: "Study", number: int, attrs: dict[str, Any], left: int) -> bool:
        """End a trial unless another worker has, and queue another one of the same cell if a try is left."""
        from optuna.trial import TrialState

        with self.alone():
            if study.get_trials(deepcopy=False)[number].state != TrialState.RUNNING:
                return False
            study.tell(number, state=TrialState.FAIL)
            if left >= 0:
                attrs = {key: value for key, value in attrs.items() if key != "error"} | {"left": left}
                study.enqueue_trial(attrs["values"], user_attrs=attrs)
        return True

    def heartbeat(self, study: "Study", number: int) -> Path:
        return self.folder / "alive" / f"{folder_of(study.study_name).replace('/', '_')}-{number}"

    @contextmanager
    def alive(self, study: "Study", trial: "Trial") -> Iterator[None]:
        """Touch the trial's file as long as this process lives."""
        file, over = self.heartbeat(study, trial.number), threading.Event()
        seconds = study.user_attrs["stale_after"] / 4
        file.touch()

        def beat() -> None:
            while not over.wait(seconds):
                with suppress(OSError):  # a file system that is away for a moment
                    file.touch()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            file.unlink(missing_ok=True)

    def take_over(self) -> None:
        """Queue the cells of dead workers again, by the clock of the file system that all of them share."""
        clock = self.folder / "alive" / "now"
        for study, trial in self.trials("RUNNING"):
            clock.touch()
            file = self.heartbeat(study, trial.number)
            try:
                silent = clock.stat().st_mtime - file.stat().st_mtime
            except FileNotFoundError:  # killed before its first beat
                silent = (datetime.datetime.now() - trial.datetime_start).total_seconds()
            attrs = trial.user_attrs
            if silent > study.user_attrs["stale_after"] and self.fail(study, trial.number, attrs, attrs["left"] - 1):
                print(f"{attrs['cell']}: its worker is dead", flush=True)
                file.unlink(missing_ok=True)

    def run(self, study: "Study", trial: "Trial") -> float:
        """Accuracy of one cell: of a run that is finished already, or of one now."""
        from optuna.samplers import TPESampler

        search = study.user_attrs.get("grid", {})
        study.sampler = TPESampler(seed=trial.number)  # the same whatever worker asks
        chosen = {key: trial.suggest_categorical(key, values) for key, values in search.items()}
        flags = [f"--{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in chosen.items()]
        root = self.folder / trial.user_attrs["cell"]
        if chosen:  # a point that TPE picks twice is run once
            root = self.folder / study.study_name / hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:8]
            write(root / "cell.json", json.dumps({"search": chosen}, indent=2))
        metric = "val/acc1" if search else "test/acc1"
        found = accuracy(root, metric)
        if found is None:
            first = self.first(study, trial.user_attrs["cell"])
            execute([*trial.user_attrs["args"], *flags, "--run_root", str(root)], root / "log.txt", apart=not first)
            found = accuracy(root, metric)
        if found is None:
            raise Failed(f"its run left no {metric}, see {root / 'log.txt'}")
        return found

    def first(self, study: "Study", cell: str) -> bool:
        """Whether a cell has not failed yet."""
        return not any(t.user_attrs.get("cell") == cell and t.state.name == "FAIL" for t in study.trials)

    def conclude(self) -> int:
        """Say what came out; the exit code."""
        cells: dict[str, list[Any]] = {}
        for _, trial in self.trials("COMPLETE", "FAIL", "WAITING", "RUNNING"):
            cells.setdefault(trial.user_attrs["cell"], []).append(trial)
        missing = {name: t[-1] for name, t in cells.items() if all(trial.state.name != "COMPLETE" for trial in t)}
        for name, trial in missing.items():
            print(f"missing: {name}: {trial.user_attrs.get('error', 'not finished')}")
        chosen = self.choose()
        print(f"{len(cells) - len(missing)} of {len(cells)} finished in {self.folder}")
        if chosen:
            print(f"chosen by validation accuracy: --recipe {chosen[0].parent} ({', '.join(c.stem for c in chosen)})")
        if "grid" in self.names():
            from commands.report import report

            report([str(self.folder)])
        return int(bool(missing))

    def choose(self) -> list[Path]:
        """Write what the searches found as recipes."""
        from commands.lightning import read_recipe

        recipes: dict[str, dict[str, Any]] = {}
        for name in self.names():
            study = self.study(name)
            finished = [t for t in study.trials if t.state.name == "COMPLETE"]
            about = study.user_attrs
            if "grid" not in about or not finished:
                continue
            label, task = about["label"], about["task"]
            if label not in recipes:
                recipes[label] = {k: v for k, v in read_recipe(about["recipe"]).items() if k not in ("grid", "tasks")}
            published = read_recipe(about["recipe"]).get("tasks", {}).get(task, {})
            # of equals the smallest learning rate, as VPT's search
            best = max(finished, key=lambda trial: (trial.value or 0.0, -trial.params.get("model.lr", 0.0))).params
            if task is None:
                recipes[label]["all"] = recipes[label].get("all", {}) | best
            else:
                recipes[label].setdefault("tasks", {})[task] = published | best
        written = []
        for label, recipe in recipes.items():
            file = self.folder / "chosen" / f"{label}.yaml"
            head = f"# python train.py grid --recipe {file.parent} --methods {label} --tasks ... -- --data.root DIR\n"
            head += f"# chosen by validation accuracy in {self.folder}\n"
            write(file, head + yaml.safe_dump(recipe, sort_keys=False))
            written.append(file)
        return written


class Failed(Exception):
    """A run did not come to its end."""


def execute(args: list[str], log: Path, apart: bool) -> None:
    """Run a command line, and let the log have what it prints.

    Args:
        args: What stands behind ``train.py``.
        log: File to append to.
        apart: In a process of its own, for what a failure leaves behind in this one (a broken CUDA context).
    """
    with log.open("a") as file:
        if apart:
            command = [sys.executable, str(ENTRY), *args]
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
            if code:
                raise Failed(f"exit code {code}, see {log}")
            return
        from commands.lightning import GraftCLI
        from train import ours

        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.WARNING)  # they print past the log
        try:
            with redirect_stdout(file), redirect_stderr(file):
                GraftCLI.run(args)
        except SystemExit as stop:
            if stop.code != 2:  # 2 is a command line that cannot be read, all others want this process to end
                raise
            raise Failed(f"its options cannot be read, see {log}") from stop
        except Exception as error:
            file.write(traceback.format_exc())
            cause = ours(error) or error  # libraries may have wrapped it
            first = str(cause).partition("\n")[0]
            raise Failed(f"{type(cause).__name__}: {first}, see {log}") from error
        finally:
            gc.collect()  # models and loaders of the run


def accuracy(root: Path, metric: str) -> float | None:
    """Of the newest finished run below ``root``: of the best epoch if one was chosen."""
    from commands.prune_rewind import newest

    file = newest(root, "result.json")
    result = json.loads(file.read_text()) if file is not None else {}
    found: float | None = result.get(f"best/{metric}", result.get(metric))
    return found


def write(path: Path, text: str) -> None:
    from checkpoints.atomic import write_atomically

    write_atomically(path, lambda temporary: temporary.write_text(text))
