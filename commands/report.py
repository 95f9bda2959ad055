"""Leaderboard of finished runs beside the papers' printed numbers, as Markdown, CSV, PNG and one HTML page.

Runs of one protocol share a letter: those of another backbone, split, selection, normalisation and the like are rows of
their own, never averaged with the first, and the page says what differs. What is missing is shown as missing.
"""

import argparse
import base64
import csv
import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

PRINTED = Path(__file__).resolve().parent.parent / "benchmarks" / "printed.yaml"
# what must be equal before two numbers may stand side by side without a word (specs differ exactly there)
PROTOCOL = (
    *("backbone", "pretrained", "source", "split", "selection"),
    *("resize", "interpolation", "normalization", "limit_test_batches"),
)
COSTS = {
    "cost/trainable_params": "trained parameters",
    "cost/storage_bytes": "storage (bytes)",
    "cost/images_per_s": "training images/s",
    "cost/peak_mem_gib": "peak memory (GiB)",
}
LOGARITHMIC = ("cost/trainable_params", "cost/storage_bytes")
# where a run writes, and what columns and seeds say already
PLACES = (
    *("seed_everything", "run_root", "ckpt_path", "score.cache_dir", "checkpoint.dirpath", "test_after_fit"),
    *("trainer.logger", "trainer.default_root_dir"),
    *("data.init_args.task", "data.init_args.root", "data.init_args.shot_seed"),
)
MISSING = "-"
STYLE = """<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 100rem; padding: 0 1rem }
table { border-collapse: collapse; display: block; overflow-x: auto; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
tr:hover td { background: #f3f3f3 }
img { max-width: 100% }
</style>"""


def report(args: list[str]) -> None:
    """Read every ``result.json`` below the folders and write the tables.

    Args:
        args: Folders, and where the report goes.

    Raises:
        ValueError: If there is no run in the folders.
    """
    parser = argparse.ArgumentParser(
        "train.py report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="run folders, or folders of them")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the report (RUNS/report)")
    own = parser.parse_args(args)
    runs, unfinished = collect(own.runs)
    if not runs and not unfinished:
        raise ValueError(f"no run in {', '.join(map(str, own.runs))}: expected folders of `fit` with their config.yaml")
    output = own.output or own.runs[0] / "report"
    text, rows, pictures = ["# Report"], [], {}
    for dataset in dict.fromkeys(run.dataset for run in runs):
        board = Leaderboard(dataset, [run for run in runs if run.dataset == dataset])
        picture = f"{dataset}.png" if board.complete else None
        if picture is not None:
            pictures[picture] = board.draw()
        text += board.markdown(picture)
        rows += board.rows()
    if unfinished:
        text += ["## Unfinished", "\n".join(f"- {line}" for line in unfinished)]
    page = "\n\n".join(text)
    save(output / "report.md", page + "\n")
    save(output / "report.html", html(page, pictures))
    save(output / "leaderboard.csv", table(rows))
    save(output / "runs.csv", table([run.row() for run in runs]))
    for name, picture_bytes in pictures.items():
        save(output / name, picture_bytes)
    print(f"{len(runs)} runs, {len(unfinished)} unfinished: {output / 'report.html'} (.md, .csv, .png beside it)")


@dataclass
class Run:
    """One finished run: what it is called, where it stands and what came out."""

    folder: Path
    label: str
    dataset: str
    column: str
    seed: str
    result: dict[str, Any]
    options: dict[str, Any]

    @property
    def accuracy(self) -> float:
        return 100 * float(self.result["test/acc1"])

    @property
    def protocol(self) -> tuple[str, ...]:
        found = self.result | {"limit_test_batches": self.options.get("trainer.limit_test_batches")}
        return tuple(str(found.get(key, "")) for key in PROTOCOL)

    def row(self) -> dict[str, Any]:
        about: dict[str, Any] = {"method": self.label, "data": self.dataset, "task": self.column, "seed": self.seed}
        about |= {"accuracy": round(self.accuracy, 3)} | dict(zip(PROTOCOL, self.protocol, strict=True))
        return about | {k: self.result.get(k) for k in COSTS} | {"folder": str(self.folder)}


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
                unfinished.append(f"`{folder}`: not tested")
            if cell is not None:
                cells[cell] |= run is not None
    for cell, done in cells.items():
        about = json.loads((cell / "cell.json").read_text())
        if not done and "search" not in about:
            unfinished.append(f"{about['label']}, {about['task'] or 'its data'}, seed {about['seed']}: `{cell}`")
    return newest(name_variants(runs)), unfinished


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
        if "test/acc1" not in result or "cost/trainable_params" not in result:
            return None
        file = folder / "config.yaml"
        options = flat(yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
        column = str(result.get("data_task") or cell.get("task") or Path(result["data"]).name)
        shots = result.get("shots")
        seed = str(result["seed"]) + (f"/{result['shot_seed']}" if "shot_seed" in result else "")
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


class Leaderboard:
    """The table of one data set: a row for each method and protocol, a column for each task.

    Args:
        dataset: Name of the datamodule.
        runs: Its finished runs.
    """

    def __init__(self, dataset: str, runs: list[Run]) -> None:
        self.dataset, self.runs = dataset, runs
        groups, found = groups_of(dataset), dict.fromkeys(run.column for run in runs)
        order = [task for tasks in groups.values() for task in tasks]
        self.columns = sorted(found, key=lambda c: (order.index(c) if c in order else len(order), c))
        self.sizes = {name: len(tasks) for name, tasks in groups.items()}
        self.groups = {name: [c for c in self.columns if c in tasks] for name, tasks in groups.items()}
        self.groups = {name: columns for name, columns in self.groups.items() if columns}
        counts = Counter(run.protocol for run in runs)
        self.letters = {protocol: letter(n) for n, (protocol, _) in enumerate(counts.most_common())}
        self.lines: dict[tuple[str, str], list[Run]] = {}
        for run in runs:
            self.lines.setdefault((self.letters[run.protocol], run.label), []).append(run)
        self.seeds = max(len({run.seed for run in line}) for line in self.lines.values())
        self.printed = [row for row in printed(dataset) if set(self.columns) <= row["accuracy"].keys()]
        usual = {c: Counter(images_of(run) for run in runs if run.column == c) for c in self.columns}
        self.usual = {column: count.most_common(1)[0][0] for column, count in usual.items()}

    @property
    def complete(self) -> list[tuple[str, str]]:
        """Rows without a missing task."""
        return [key for key in self.order if {run.column for run in self.lines[key]} == set(self.columns)]

    @property
    def order(self) -> list[tuple[str, str]]:
        """Rows: by protocol, then the whole ones, then the best."""

        def rank(key: tuple[str, str]) -> tuple[Any, ...]:
            columns = {run.column for run in self.lines[key]}
            return key[0], -len(columns), -mean(run.accuracy for run in self.lines[key]), key[1]

        return sorted(self.lines, key=rank)

    def cells(self, line: list[Run]) -> dict[str, list[float]]:
        """Accuracies of each task over seeds."""
        return {c: [run.accuracy for run in line if run.column == c] for c in self.columns}

    def means(self, line: list[Run]) -> dict[str, list[float]]:
        """Mean of each group, of the groups and of the tasks, once for every seed that has all tasks of it."""
        found: dict[str, list[float]] = {}
        for seed in sorted({run.seed for run in line}):
            own = {run.column: run.accuracy for run in line if run.seed == seed}
            for name, value in averages(own, self.groups, self.columns).items():
                found.setdefault(name, []).append(value)
        return found

    @property
    def mean_names(self) -> dict[str, str]:
        """Names of the means, and what the table calls them."""
        names = {}
        if len(self.groups) > 1:
            for name, columns in self.groups.items():
                size = self.sizes[name]
                names[name] = name if len(columns) == size else f"{name} ({len(columns)} of {size})"
            names["mean of groups"] = "mean of groups"
        names["mean of tasks"] = f"mean of {len(self.columns)} tasks"
        return names

    def rows(self) -> list[dict[str, Any]]:
        """The table as plain values, for CSV."""
        found = []
        for key in self.order:
            line = self.lines[key]
            row: dict[str, Any] = {"data": self.dataset, "method": key[1], "protocol": key[0]}
            row["seeds"] = len({run.seed for run in line})
            for name, values in (self.means(line) | self.cells(line)).items():
                row |= {name: round(mean(values), 3), f"{name} std": deviation(values)} if values else {}
            found.append(row | self.costs(line))
        for row in self.printed:
            about = {"data": self.dataset, "method": f"{row['method']} (printed)", "protocol": row["source"]}
            found.append(about | averages(row["accuracy"], self.groups, self.columns) | row["accuracy"])
        return found

    def costs(self, line: list[Run]) -> dict[str, float]:
        """Mean costs over tasks and seeds."""
        found = {name: [run.result[name] for run in line if name in run.result] for name in COSTS}
        return {name: mean(values) for name, values in found.items() if values}

    def markdown(self, picture: str | None) -> list[str]:
        """Paragraphs: summary, tasks, picture, protocols."""
        names, several = self.mean_names, len(self.columns) > 1
        costs = [*(COSTS[name] for name in COSTS)]
        head = ["method", "protocol", "seeds", *(names.values() if several else self.columns), *costs]
        body, tasks = [], []
        for letter, label in self.order:
            line = self.lines[letter, label]
            means, cells, cost = self.means(line), self.cells(line), self.costs(line)
            shown = [self.shown(means.get(name, [])) for name in names] if several else [self.cell(line, *self.columns)]
            count = str(len({run.seed for run in line}))
            body.append([label, letter, count, *shown, *(number(cost.get(name)) for name in COSTS)])
            tasks.append([label, letter, *(self.cell(line, column) for column in cells)])
        for row in self.printed:
            average, own = averages(row["accuracy"], self.groups, self.columns), row["accuracy"]
            values = [average[name] for name in names] if several else [own[c] for c in self.columns]
            label = f"{row['method']}, printed"
            body.append([label, f"[{row['source']}]", "", *(f"{v:.2f}" for v in values), *[""] * len(costs)])
            tasks.append([label, f"[{row['source']}]", *(f"{own[c]:.1f}" for c in self.columns)])
        text = [f"## {self.dataset}", grid_of(head, body)]
        if several:
            text += ["Top-1 of each task:", grid_of(["method", "protocol", *self.columns], tasks)]
        if picture is not None:
            text.append(f"![Accuracy against costs]({picture})")
        return [*text, self.notes()]

    def cell(self, line: list[Run], column: str) -> str:
        runs = [run for run in line if run.column == column]
        mark = " †" if any(images_of(run) != self.usual[column] for run in runs) else ""
        return self.shown([run.accuracy for run in runs]) + mark

    def shown(self, values: list[float]) -> str:
        if not values:
            return MISSING
        spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
        return f"{mean(values):.2f}{spread}" + (
            f" ({len(values)} of {self.seeds} seeds)" if len(values) < self.seeds else ""
        )

    def notes(self) -> str:
        """What the letters stand for."""
        first, lines = next(iter(self.letters)), []
        for protocol, name in self.letters.items():
            values = [(k, v or MISSING, a or MISSING) for k, v, a in zip(PROTOCOL, protocol, first, strict=True)]
            said = [f"{key} {value}" for key, value, _ in values if value not in (MISSING, "None")]
            if protocol != first:
                said = [f"{key} {value} (A: {usual})" for key, value, usual in values if value != usual]
            lines.append(f"- protocol {name}: {', '.join(said)}")
        if len(self.letters) > 1:
            lines.append("- **Rows of different protocols are not comparable.**")
        for name in dict.fromkeys(row["source"] for row in self.printed):
            lines.append(f"- [{name}] {sources()[name]}")
        if any(images_of(run) != self.usual[run.column] for run in self.runs):
            lines.append("- † trained on another number of images than most runs of the column")
        lines.append("- ± is the standard deviation over seeds; costs are means over tasks and seeds.")
        lines.append("- On CPUs memory is the most that a process has had; runs of one grid worker share a process.")
        return "\n".join(lines)

    def draw(self) -> bytes:
        """Mean accuracy over the tasks against each cost, of rows without a missing task."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt

        figure, axes = plt.subplots(1, len(COSTS), figsize=(4.2 * len(COSTS), 3.8), layout="constrained", sharey=True)
        for axis, (name, title) in zip(axes, COSTS.items(), strict=True):
            for letter, label in self.complete:
                line = self.lines[letter, label]
                cost, values = self.costs(line).get(name), self.cells(line).values()
                if cost:
                    accuracy = mean(mean(value) for value in values)
                    axis.scatter(cost, accuracy, s=18)
                    text = label if len(self.letters) == 1 else f"{label} ({letter})"
                    axis.annotate(text, (cost, accuracy), textcoords="offset points", xytext=(4, 3), fontsize=8)
            axis.set(
                xlabel=title, xscale="log" if name in ("cost/trainable_params", "cost/storage_bytes") else "linear"
            )
            axis.margins(x=0.25, y=0.12)  # for the names
            axis.grid(alpha=0.3)
        axes[0].set_ylabel(f"test top-1, {self.mean_names['mean of tasks']}")
        stream = BytesIO()
        figure.savefig(stream, format="png", dpi=120)
        plt.close(figure)
        return stream.getvalue()


def groups_of(dataset: str) -> dict[str, tuple[str, ...]]:
    """Groups of tasks of a datamodule, or all tasks as one group."""
    import datamodules

    data = getattr(datamodules, dataset, None)
    module = sys.modules.get(getattr(data, "__module__", ""))
    found = getattr(data, "groups", None) or getattr(module, "GROUPS", None)
    return found or {"all": tuple(getattr(data, "tasks", ()))}


def averages(own: dict[str, float], groups: dict[str, list[str]], columns: list[str]) -> dict[str, float]:
    """Means of what is whole: a group needs all its columns."""
    found = {name: mean(own[c] for c in tasks) for name, tasks in groups.items() if set(tasks) <= own.keys()}
    if len(found) == len(groups) > 1:
        found["mean of groups"] = mean(found.values())
    if set(columns) <= own.keys():
        found["mean of tasks"] = mean(own[c] for c in columns)
    return found


def printed(dataset: str) -> list[dict[str, Any]]:
    """Rows of papers: ``method``, ``source`` and ``accuracy`` of each task."""
    table = yaml.safe_load(PRINTED.read_text())["tables"].get(dataset, {"tasks": [], "rows": []})
    rows = []
    for method, source, *values in table["rows"]:
        accuracy = dict(zip(table["tasks"], values, strict=True))
        rows.append({"method": method, "source": source, "accuracy": accuracy})
    return rows


def sources() -> dict[str, str]:
    return dict(yaml.safe_load(PRINTED.read_text())["sources"])


def images_of(run: Run) -> str:
    return str(run.result.get("images", {}).get("train"))


def letter(number: int) -> str:
    return chr(ord("A") + number % 26) * (number // 26 + 1)


def deviation(values: list[float]) -> float | None:
    return round(stdev(values), 3) if len(values) > 1 else None


def number(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def grid_of(head: list[str], body: list[list[str]]) -> str:
    """A Markdown table."""
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def table(rows: list[dict[str, Any]]) -> str:
    """CSV with the union of all columns."""
    stream = StringIO()
    writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def html(page: str, pictures: dict[str, bytes]) -> str:
    """The page with its pictures inside."""
    from markdown_it import MarkdownIt

    for name, content in pictures.items():
        page = page.replace(f"]({name})", f"](data:image/png;base64,{base64.b64encode(content).decode()})")
    body = MarkdownIt("js-default").render(page)
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Report</title>\n{STYLE}\n{body}</html>\n'


def save(path: Path, content: str | bytes) -> None:
    from callbacks.delta_file import write_atomically

    data = content.encode() if isinstance(content, str) else content
    write_atomically(path, lambda temporary: temporary.write_bytes(data))
