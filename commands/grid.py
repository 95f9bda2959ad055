"""Fit and test methods x tasks x seeds, or search what a recipe leaves open, with any number of workers.

Options after -- are those of `python train.py fit`, with {method} and {task} replaced. Every cell of the product is
one such command line with a folder of its own in the study. A study is an Optuna journal file: the same command again
goes on where it stopped, runs what failed again and what is finished never, and `python train.py grid --study DIR
--join` is one more worker of it, on any machine that sees the folder.
"""

import argparse
import datetime
import gc
import hashlib
import itertools
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from optuna import Study, Trial

ENTRY = Path(__file__).resolve().parent.parent / "train.py"
OURS = ("--run_root", "--seed_everything", "--ckpt_path", "--method", "--recipe", "--data.task")


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


def words(text: str) -> list[str]:
    return list(dict.fromkeys(word for word in text.split(",") if word))


def seeds(text: str) -> list[int]:
    return [int(word) for word in words(text)]


# what there is to do


@dataclass
class Cell:
    """One command line.

    Args:
        study: Name of the Optuna study it is a trial of.
        name: Its folder in the study's folder.
        args: The command line but for the run folder.
        about: What a report calls it.
        values: Options that a search tries.
    """

    study: str
    name: str
    args: list[str]
    about: dict[str, Any]
    values: dict[str, Any] = field(default_factory=dict)


def cells(own: argparse.Namespace, options: list[str]) -> tuple[list[Cell], dict[str, Any]]:
    """Every combination of method, task, other axes and seed."""
    from commands.lightning import nearest

    axes = {}
    for axis in own.over:
        key, _, values = axis.partition("=")
        axes[key.removeprefix("--")] = words(values) or nearest(axis, {"KEY=V,...": None}, "--over")
    found = []
    for label, task, *values, seed in itertools.product(own.methods, tasks_of(own, options), *axes.values(), own.seeds):
        over = dict(zip(axes, values, strict=True))
        named = [f"{key.rpartition('.')[2]}={value}" for key, value in over.items()]
        # the report takes what varies the data from the results, and gives each model a row of its own
        model = [name for name, key in zip(named, over, strict=True) if key.startswith("model.")]
        args = command(own, options, label, task, ["--test_after_fit=true"])
        args += [f"--{key}={value}" for key, value in over.items()] + [f"--seed_everything={seed}"]
        about = {"label": " ".join([label, *model]), "task": task, "seed": seed}
        found.append(Cell("grid", folder_of(label, task, *named, f"s{seed}"), args, about))
    return found, {}


def searches(own: argparse.Namespace, options: list[str]) -> tuple[list[Cell], dict[str, Any]]:
    """Every point of the recipes' grids for each method and task, or as many without values as TPE may pick."""
    import datamodules
    from commands.lightning import read_recipe

    if own.recipe is None:
        raise ValueError("--search needs a --recipe: what it searches is the `grid` of the recipes")
    found, grids = [], {}
    for label, task in itertools.product(own.methods, tasks_of(own, options)):
        recipe = read_recipe(recipe_of(own.recipe, label))
        values = {key: list(points) for key, points in recipe.get("grid", {}).items()}
        if not values or any(key.startswith("data.") for key in values):
            raise ValueError(f"--recipe {own.recipe}: {label} has no `grid` of options to choose by validation images")
        args = [*command(own, options, label, task, []), f"--seed_everything={own.seeds[0]}"]
        if hasattr(getattr(datamodules, recipe["data"], None), "lists"):
            args.append("--data.split=tune")  # last, so that it wins: test images choose nothing
        name = folder_of("search", label, task)
        grids[name] = {"grid": values, "recipe": recipe_of(own.recipe, label), "label": label, "task": task}
        points = [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]
        for number, point in enumerate([{}] * own.search if own.search else points):
            about = {"label": label, "task": task, "seed": own.seeds[0]}
            found.append(Cell(name, f"{name}/{number}", args, about, point))
    return found, grids


def command(own: argparse.Namespace, options: list[str], label: str, task: str | None, more: list[str]) -> list[str]:
    """A command line without its seed."""
    from commands.lightning import nearest, take
    from methods import METHODS

    taken = [flag for flag in OURS if take(options, flag)[0] is not None]
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
    """The tasks by their own names, all of the data if asked; one nameless task without ``--tasks``."""
    import datamodules
    from commands.lightning import nearest, read_recipe, take

    name = take(options, "--data")[0]
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


def folder_of(*names: str | None) -> str:
    return "/".join(re.sub(r"[^\w.=+-]+", "_", name) for name in names if name is not None)


# who does it


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
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
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
            best = max(finished, key=lambda trial: trial.value or 0.0).params
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


def check(args: list[str]) -> None:
    """Stop before anything is queued if a command line cannot be read."""
    from commands.lightning import GraftCLI

    try:
        with redirect_stdout(StringIO()):
            GraftCLI.run([*args, "--print_config"])
    except SystemExit as stop:
        if stop.code:
            raise


def write(path: Path, text: str) -> None:
    from callbacks.delta_file import write_atomically

    write_atomically(path, lambda temporary: temporary.write_text(text))


def gpus() -> list[str]:
    """What this process may use, as CUDA_VISIBLE_DEVICES names it."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def worker(study: Path) -> list[str]:
    return [sys.executable, str(ENTRY), "grid", "--study", str(study.resolve()), "--join"]


def spread(study: Path, workers: int) -> None:
    """Let processes work on the study, each on a GPU of its own as far as there are."""
    found, processes = gpus(), []
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        for number in range(workers):
            environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))} | dict(os.environ)
            if found:
                environment["CUDA_VISIBLE_DEVICES"] = found[number % len(found)]
            processes.append(subprocess.Popen(worker(study), env=environment))
        for process in processes:
            process.wait()
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        signal.signal(signal.SIGTERM, before)


def submit(study: Path, workers: int, settings: list[str]) -> list[Any]:
    """Submit workers as a job array; a worker whose time is up is queued again and goes on."""
    try:
        import submitit
    except ImportError as error:
        raise ValueError("--slurm needs submitit: pip install submitit (or `.[grid]` of this project)") from error
    command = worker(study)

    class Worker(submitit.helpers.Checkpointable):
        def __call__(self) -> int:
            return subprocess.run(command).returncode

    options: dict[str, Any] = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        options[key] = int(value) if value.isdigit() else value
    executor = submitit.AutoExecutor(study.resolve() / "slurm", cluster=options.pop("cluster", None))
    executor.update_parameters(name="graft-grid", **options)
    with executor.batch():
        jobs = [executor.submit(Worker()) for _ in range(workers)]
    print(f"submitted {', '.join(job.job_id for job in jobs)}; logs in {executor.folder}")
    print(f"when they are done: python train.py report {study}")
    return list(jobs)
