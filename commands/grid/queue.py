"""Queue of a study: cells wait in an Optuna journal, workers take and run them, and take over from dead workers."""

import hashlib
import itertools
import json
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from callbacks.pruning import PRUNED
from commands.grid.heartbeat import beating, silence
from commands.grid.plan import Cell, check, folder_of
from commands.lightning.arguments import flags
from commands.lightning.errors import Failed
from commands.lightning.runs import exit_on_sigterm, run_once
from commands.report.runs import metric_of

if TYPE_CHECKING:
    from optuna import Study, Trial

FINISHED = ("COMPLETE", "PRUNED")
UNDER_WAY = ("WAITING", "RUNNING", *FINISHED)


class Queue:
    """The cells of a study as trials of Optuna.

    Cells are queued one by one, as waiting trials that a worker takes atomically. With GridSampler alone a failed point
    would count as finished, and several workers would run the last points twice. A journal file has no heartbeat, so
    each worker touches a file of its trial.

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
        """Keep other processes from planning and taking over; the lock of a killed one is broken after two minutes."""
        from optuna.storages.journal import JournalFileSymlinkLock

        lock = JournalFileSymlinkLock(str(self.folder / "plan"), grace_period=120)
        lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def names(self) -> list[str]:
        """Names of all Optuna studies: ``grid``, and one for each search."""
        return [study.study_name for study in self.storage.get_all_studies()]

    def study(self, name: str) -> "Study":
        return self.optuna.load_study(study_name=name, storage=self.storage)

    def trials(self, *states: str) -> list[tuple["Study", Any]]:
        """Trials of cells in these states, of all studies."""
        studies = [self.study(name) for name in self.names()]
        found = [(study, trial) for study in studies for trial in study.get_trials(deepcopy=False)]
        return [(study, t) for study, t in found if t.state.name in states and "cell" in t.user_attrs]

    # planning

    def plan(self, planned: list[Cell], grids: dict[str, Any], retries: int, stale_after: float) -> None:
        """Queue the cells that are neither finished nor under way.

        Args:
            planned: The cells.
            grids: Attributes of each search, by the name of its study.
            retries: How often a cell that fails is tried again.
            stale_after: Seconds of silence after which a worker counts as dead.

        Raises:
            ValueError: If the study holds one of the cells with other options.
        """
        known = {t.user_attrs["cell"]: t.user_attrs for _, t in self.trials(*UNDER_WAY)}
        for cell in planned:
            refuse_other(cell, known.get(cell.name), self.folder)
        new = [cell for cell in planned if cell.name not in known]
        metrics = {label: check(args) for label, args in {cell.about["label"]: cell.args for cell in new}.items()}
        for cell in new:
            if cell.study == "grid":
                write(self.folder / cell.name / "cell.json", json.dumps(cell.about, indent=2))
        with self.alone():
            there = {t.user_attrs["cell"] for _, t in self.trials(*UNDER_WAY)}
            for name, group in itertools.groupby(planned, lambda cell: cell.study):
                cells = list(group)
                found = [metrics[cell.about["label"]] for cell in cells if cell.about["label"] in metrics]
                study = self.create(name, found[0] if found else None)
                for key, value in {"stale_after": stale_after, **grids.get(name, {})}.items():
                    study.set_user_attr(key, value)
                for cell in cells:
                    if cell.name not in there:
                        attrs = {"cell": cell.name, "args": cell.args, "values": cell.values, "left": retries}
                        study.enqueue_trial(cell.values, user_attrs=attrs)

    def create(self, name: str, metric: dict[str, Any] | None) -> "Study":
        """Make a study in the direction of its metric, or load it if it exists; without a metric it exists."""
        if metric is None or name in self.names():
            return self.study(name)
        direction: Literal["maximize", "minimize"] = "maximize" if metric["higher_is_better"] else "minimize"
        study = self.optuna.create_study(study_name=name, storage=self.storage, direction=direction)
        study.set_user_attr("metric", metric)
        return study

    # working

    def work(self) -> None:
        """Take cells until none waits and none runs, because a cell of a worker that dies waits again."""
        from backbones.shared import shared_backbone
        from datamodules.pixels import shared_pixels

        with exit_on_sigterm(), shared_backbone(), shared_pixels():
            while True:
                self.take_over()
                waiting, running = self.trials("WAITING"), self.trials("RUNNING")
                if waiting:
                    self.take(waiting[0][0])
                elif running:
                    time.sleep(min(10.0, min(study.user_attrs["stale_after"] for study, _ in running) / 4))
                else:
                    break

    def take(self, study: "Study") -> None:
        """Run the next trial of a study, if another worker was not faster."""
        from optuna.trial import TrialState

        trial = study.ask()
        attrs = trial.user_attrs
        if "cell" not in attrs:  # no trial waited any more, so that `ask` made a new one
            study.tell(trial, state=TrialState.PRUNED)
            return
        start = time.perf_counter()
        with beating(self.heartbeat(study, trial.number), study.user_attrs["stale_after"] / 4):
            try:
                value = self.run(study, trial)
            except Failed as failure:
                trial.set_user_attr("error", str(failure))
                self.fail(study, trial.number, attrs, attrs["left"] - 1)
                print(f"{attrs['cell']}: {failure}; {attrs['left']} more tries", flush=True)
                return
            except BaseException:  # stopped by the user or the cluster, which is no failure of the cell
                self.fail(study, trial.number, attrs, attrs["left"])
                raise
            with self.alone():
                study.tell(trial, **ending(study, trial.number, value), skip_if_finished=True)
        done, rest = len(self.trials(*FINISHED)), len(self.trials("WAITING", "RUNNING"))
        shown = f"{metric_of(study.user_attrs)['scale'] * value:.2f} ({time.perf_counter() - start:.0f} s)"
        print(f"[{done}/{done + rest}] {attrs['cell']}: {shown}", flush=True)

    def fail(self, study: "Study", number: int, attrs: dict[str, Any], left: int) -> bool:
        """End a trial unless another worker has, and queue its cell again if a try is left.

        Args:
            study: The study.
            number: Number of the trial.
            attrs: Attributes of the trial.
            left: Tries that are left.

        Returns:
            Whether this call ended the trial.
        """
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
        """The file that the worker of a trial touches."""
        return self.folder / "alive" / f"{folder_of(study.study_name).replace('/', '_')}-{number}"

    def take_over(self) -> None:
        """Queue the cells of dead workers again."""
        for study, trial in self.trials("RUNNING"):
            file, attrs = self.heartbeat(study, trial.number), trial.user_attrs
            silent = silence(file, self.folder / "alive" / "now", trial.datetime_start)
            if silent > study.user_attrs["stale_after"] and self.fail(study, trial.number, attrs, attrs["left"] - 1):
                print(f"{attrs['cell']}: its worker is dead", flush=True)
                file.unlink(missing_ok=True)

    def run(self, study: "Study", trial: "Trial") -> float:
        """Run a cell, unless it has finished before.

        Returns:
            The metric of the task: of the best epoch of a search, of the test otherwise.

        Raises:
            Failed: If the run fails or leaves no metric.
        """
        from optuna.samplers import TPESampler

        search, attrs = study.user_attrs.get("grid", {}), trial.user_attrs
        study.sampler = TPESampler(seed=trial.number)  # so that every worker draws the same values
        chosen = {key: trial.suggest_categorical(key, values) for key, values in search.items()}
        root = self.folder / attrs["cell"]
        if chosen:  # a folder by its values, so that a point that TPE picks twice is run once
            root = self.folder / study.study_name / hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:8]
            write(root / "cell.json", json.dumps({"search": chosen}, indent=2))
        # runs in this process share backbone and images; after a failure CUDA may be broken in this process
        failed = any(t.user_attrs.get("cell") == attrs["cell"] and t.state.name == "FAIL" for t in study.trials)
        log = root / "log.txt"
        more = [*flags(chosen), *pruning(self.folder, study, trial.number)]
        result = run_once([*attrs["args"], *more], root, log=log, own_process=failed)
        keys = ["best/val/{}", "val/{}"] if search else ["test/{}"]
        return first_of(result, [key.format(metric_of(study.user_attrs)["name"]) for key in keys], log)


def ending(study: "Study", number: int, value: float) -> dict[str, Any]:
    """Arguments of ``Study.tell`` for a trial whose run has ended: its value, unless it was pruned."""
    from optuna.trial import TrialState

    pruned = PRUNED in study.get_trials(deepcopy=False)[number].user_attrs
    return {"state": TrialState.PRUNED} if pruned else {"values": value}


def pruning(folder: Path, study: "Study", number: int) -> list[str]:
    """Options of the callback that reports the validations of a fit and ends a bad one, if the study prunes.

    Args:
        folder: Folder of the study.
        study: The study.
        number: Number of the trial.
    """
    if not study.user_attrs.get("prune"):
        return []
    values = {"journal": folder / "journal.log", "study": study.study_name, "trial": number}
    given = [f"--trainer.callbacks.{name}={value}" for name, value in values.items()]
    return ["--trainer.callbacks+=callbacks.pruning.Pruning", *given]


def refuse_other(cell: Cell, known: dict[str, Any] | None, folder: Path) -> None:
    """Refuse a cell that a study holds with other options.

    Args:
        cell: The cell.
        known: Attributes of the trial with its name, if there is one.
        folder: Folder of the study.

    Raises:
        ValueError: If they differ.
    """
    if known is not None and (known["args"], known["values"]) != (cell.args, cell.values):
        raise ValueError(
            f"--study {folder} holds {cell.name} with other options: {shlex.join(known['args'])}. "
            "Repeat them, or name another --study"
        )


def first_of(result: dict[str, Any], keys: list[str], log: Path) -> float:
    """Value of the first key that a result has.

    Raises:
        Failed: If it has none of them.
    """
    for key in keys:
        if key in result:
            return float(result[key])
    raise Failed(f"its run left no {keys[-1]}, see {log}")


def write(path: Path, text: str) -> None:
    """Write a file as a whole, so that no reader finds a part of it."""
    from checkpoints.atomic import write_atomically

    write_atomically(path, lambda temporary: temporary.write_text(text))
