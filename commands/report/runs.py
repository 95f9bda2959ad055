"""Finished runs, read from the folders of ``fit``: name, protocol, options and result."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

# results that differ in one of these are not comparable
PROTOCOL = (
    *("backbone", "pretrained", "source", "split", "selection"),
    *("resize", "image_size", "crop_pct", "interpolation", "normalization", "limit_test_batches"),
)
# options that tell where a run writes, or that columns and seeds show already
PLACES = (
    *("seed_everything", "run_root", "ckpt_path", "score.cache_dir", "checkpoint.dirpath", "test_after_fit"),
    *("trainer.logger", "trainer.default_root_dir"),
    *("data.init_args.task", "data.init_args.root", "data.init_args.shot_seed", "data.init_args.fold"),
)


@dataclass
class Run:
    """One finished run.

    Args:
        folder: The run folder.
        label: Name of the row.
        dataset: Class of the datamodule.
        column: Name of the column: the task, and the shots if it has few.
        seed: Seed, and that of the shots.
        result: Content of ``result.json``.
        options: Options of ``config.yaml`` by name.
    """

    folder: Path
    label: str
    dataset: str
    column: str
    seed: str
    result: dict[str, Any]
    options: dict[str, Any]

    @property
    def metric(self) -> dict[str, Any]:
        """Name, direction, label and scale of the metric by which the task is judged."""
        return metric_of(self.result)

    @property
    def value(self) -> float:
        """The metric of the test, as tables show it."""
        return float(self.metric["scale"]) * float(self.result[f"test/{self.metric['name']}"])

    @property
    def costs(self) -> dict[str, str]:
        """Titles of the costs, by their names in the result."""
        return costs(next((unit for name in self.result if (unit := unit_of(name))), "image"))

    @property
    def protocol(self) -> tuple[str, ...]:
        found = self.result | {"limit_test_batches": self.options.get("trainer.limit_test_batches")}
        return tuple(str(found.get(key, "")) for key in PROTOCOL)

    @property
    def images(self) -> str:
        """How many images it trained on."""
        return "all but a fold" if "fold" in self.result else str(self.result.get("images", {}).get("train"))

    def row(self) -> dict[str, Any]:
        about: dict[str, Any] = {"method": self.label, "data": self.dataset, "task": self.column, "seed": self.seed}
        about |= {self.metric["label"]: round(self.value, 3)} | dict(zip(PROTOCOL, self.protocol, strict=True))
        return about | {k: self.result.get(k) for k in self.costs} | {"folder": shown(self.folder)}


def metric_of(result: dict[str, Any]) -> dict[str, Any]:
    """Name, direction, label and scale of the metric of a result; one without is of classification's first format."""
    if "metric" in result:
        return dict(result["metric"])
    from lightning_modules.classification import Classification

    return Classification.headline._asdict()


def costs(unit: str) -> dict[str, str]:
    """Titles of the costs that a report shows, by their names in results.

    Args:
        unit: Unit that the task counts, such as ``image``.
    """
    return {
        "cost/trainable_params": "trained parameters",
        "cost/storage_bytes": "storage (bytes)",
        f"cost/{unit}s_per_s": f"training {unit}s/s",
        "cost/peak_mem_gib": "peak memory (GiB)",
    }


def unit_of(name: str) -> str | None:
    """Unit in the name of a speed: ``image`` in ``cost/images_per_s``; None for another name."""
    match = re.fullmatch(r"cost/(\w+)s_per_s", name)
    return match.group(1) if match else None


def collect(places: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Finished runs below the folders, the newest of equal ones, and a line for each that is not finished."""
    runs: list[Run] = []
    cells: dict[Path, bool] = {}
    unfinished = []
    for place in places:
        if not place.is_dir():
            raise FileNotFoundError(f"{place}: no such folder")
        cells |= {path.parent.resolve(): False for path in place.rglob("cell.json")}
        # the newest last, so that it wins below
        for path in sorted(place.rglob("config.yaml"), key=lambda path: path.stat().st_mtime_ns):
            folder = path.parent.resolve()
            cell = next((parent for parent in folder.parents if parent in cells), None)
            about = json.loads((cell / "cell.json").read_text()) if cell is not None else {}
            if "search" in about:
                continue  # chosen by validation images, not tested
            run = read(folder, about)
            if run is not None:
                runs.append(run)
            elif cell is None:
                unfinished.append(f"`{shown(folder)}`: not tested")
            if cell is not None:
                cells[cell] |= run is not None
    for cell, done in cells.items():
        about = json.loads((cell / "cell.json").read_text())
        if not done and "search" not in about:
            unfinished.append(f"{about['label']}, {about['task'] or 'its data'}, seed {about['seed']}: `{shown(cell)}`")
    return newest(name_variants(runs)), unfinished


def shown(folder: Path) -> str:
    """A folder as seen from the working directory: a report is read on other machines too."""
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)


def read(folder: Path, cell: dict[str, Any]) -> Run | None:
    """A run that was fitted and tested.

    Raises:
        ValueError: If its files are damaged.
    """
    try:
        file = folder / "result.json"
        result = json.loads(file.read_text()) if file.is_file() else {}
        if not isinstance(result, dict):
            raise TypeError("expected one object")
        if f"test/{metric_of(result)['name']}" not in result or "cost/trainable_params" not in result:
            return None
        file = folder / "config.yaml"
        options = flat(yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
        column = str(result.get("data_task") or cell.get("task") or Path(result["data"]).name)
        shots = result.get("shots")
        seed = str(result["seed"]) + (f"/{result['shot_seed']}" if "shot_seed" in result else "")
        seed += f"/fold {result['fold']}" if "fold" in result else ""  # folds are joined as seeds are
        dataset = str(result.get("dataset", result["data"]))
        column = f"{column} {shots}-shot" if shots else column
        return Run(folder, cell.get("label") or result["method"], dataset, column, seed, result, options)
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"{file} is damaged ({type(error).__name__}: {error}); move its folder away") from error


def flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in options.items():
        name = f"{prefix}{key}"
        if name not in PLACES:
            found |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def key_of(run: Run) -> tuple[Any, ...]:
    return run.label, run.protocol, run.dataset, run.column, run.seed


def name_variants(runs: list[Run]) -> list[Run]:
    """Where runs of one name, task and seed differ in options, the options join the name."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(key_of(run), []).append(run)
    differing: dict[str, dict[str, None]] = {}
    for group in groups.values():
        for name in dict.fromkeys(name for run in group for name in run.options):
            if len({str(run.options.get(name)) for run in group}) > 1:
                differing.setdefault(group[0].label, {})[name] = None
    for run in runs:
        names = differing.get(run.label, {})
        run.label = " ".join([run.label, *(f"{n.rpartition('.')[2]}={run.options.get(n)}" for n in names)])
    return runs


def newest(runs: list[Run]) -> list[Run]:
    return list({key_of(run): run for run in runs}.values())
