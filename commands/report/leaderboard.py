"""The numbers of a table: the metric over seeds, means over groups and tasks, costs, and rows of papers."""

import sys
from collections import Counter
from math import exp, log10
from statistics import mean, stdev
from typing import Any

from commands.report.printed import printed
from commands.report.runs import Run


class Leaderboard:
    """The table of one data set: a row for each method and protocol, a column for each task.

    Args:
        dataset: Name of the datamodule.
        runs: Its finished runs, all of one metric.
    """

    def __init__(self, dataset: str, runs: list[Run]) -> None:
        self.dataset, self.runs = dataset, runs
        self.metric, self.costs = runs[0].metric, runs[0].costs
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
        # counted over all rows of a protocol, because every row may lack another seed
        self.seeds = max(len({run.seed for run in runs if run.protocol == protocol}) for protocol in self.letters)
        every = len(self.columns) == sum(self.sizes.values()) > 1  # a printed mean is one of all tasks
        rows, columns = printed(dataset, self.columns), set(self.columns)
        self.printed = [row for row in rows if columns <= row["values"].keys() or (row["means"] and every)]
        usual = {c: Counter(run.images for run in runs if run.column == c) for c in self.columns}
        self.usual = {column: count.most_common(1)[0][0] for column, count in usual.items()}

    @property
    def complete(self) -> list[tuple[str, str]]:
        """Rows without a missing task."""
        return [key for key in self.order if {run.column for run in self.lines[key]} == set(self.columns)]

    @property
    def order(self) -> list[tuple[str, str]]:
        """Rows: by protocol, then those with most columns, then the best."""
        sign = -1 if self.metric["higher_is_better"] else 1

        def rank(key: tuple[str, str]) -> tuple[Any, ...]:
            columns = {run.column for run in self.lines[key]}
            return key[0], -len(columns), sign * mean(run.value for run in self.lines[key]), key[1]

        return sorted(self.lines, key=rank)

    def cells(self, line: list[Run]) -> dict[str, list[float]]:
        """Metric of each task over seeds."""
        return {c: [run.value for run in line if run.column == c] for c in self.columns}

    def means(self, line: list[Run]) -> dict[str, list[float]]:
        """Mean of each group, of the groups and of the tasks, once for every seed that has all tasks of it."""
        found: dict[str, list[float]] = {}
        for seed in sorted({run.seed for run in line}):
            own = {run.column: run.value for run in line if run.seed == seed}
            for name, value in averages(own, self.groups, self.columns).items():
                found.setdefault(name, []).append(value)
        return found

    @property
    def mean_names(self) -> dict[str, str]:
        """Titles of the means by their names."""
        names = {}
        if len(self.groups) > 1:
            for name, columns in self.groups.items():
                size = self.sizes[name]
                names[name] = name if len(columns) == size else f"{name} ({len(columns)} of {size})"
            names["mean of groups"] = "mean of groups"
        names["mean of tasks"] = f"mean of {len(self.columns)} tasks"
        return names

    @property
    def has_ppt(self) -> bool:
        """Whether the table has PPT: it is one of shares over several tasks."""
        return len(self.columns) > 1 and bool(self.metric["higher_is_better"]) and self.metric["scale"] == 100

    def ppt(self, line: list[Run]) -> float | None:
        """PPT of a row, from its mean over tasks and seeds; None if a task or the number of parameters is missing."""
        found = self.means(line).get("mean of tasks")
        counts = [run.result.get("cost/trainable_params_method") for run in line]
        numbers = [count for count in counts if count is not None]
        return ppt(mean(found), mean(numbers)) if found and numbers and self.has_ppt else None

    def printed_means(self, row: dict[str, Any]) -> dict[str, float]:
        """Means of a row of a paper, and its PPT."""
        found = averages(row["values"], self.groups, self.columns) if row["values"] else dict(row["means"])
        if self.has_ppt and row["millions"] is not None and "mean of tasks" in found:
            found["PPT"] = ppt(found["mean of tasks"], row["millions"] * 1e6)
        return found

    def rows(self) -> list[dict[str, Any]]:
        """The table as plain values, for CSV."""
        found = []
        for key in self.order:
            line = self.lines[key]
            row: dict[str, Any] = {"data": self.dataset, "method": key[1], "protocol": key[0]}
            row["seeds"] = len({run.seed for run in line})
            for name, values in (self.means(line) | self.cells(line)).items():
                if values:
                    row |= {name: round(mean(values), 3), f"{name} std": deviation(values)}
                    row[f"{name} seeds"] = len(values)
            score = self.ppt(line)
            found.append(row | ({} if score is None else {"PPT": round(score, 4)}) | self.mean_costs(line))
        for row in self.printed:
            about = {"data": self.dataset, "method": f"{row['method']} (printed)", "protocol": row["source"]}
            found.append(about | self.printed_means(row) | row["values"])
        return found

    def mean_costs(self, line: list[Run]) -> dict[str, float]:
        """Mean costs over tasks and seeds."""
        found = {name: [run.result[name] for run in line if name in run.result] for name in self.costs}
        return {name: mean(values) for name, values in found.items() if values}


def groups_of(dataset: str) -> dict[str, tuple[str, ...]]:
    """Groups of tasks of a datamodule, or all tasks as one group."""
    import datamodules

    data = getattr(datamodules, dataset, None)
    module = sys.modules.get(getattr(data, "__module__", ""))
    found = getattr(data, "groups", None) or getattr(module, "GROUPS", None)
    return found or {"all": tuple(getattr(data, "tasks", ()))}


def averages(own: dict[str, float], groups: dict[str, list[str]], columns: list[str]) -> dict[str, float]:
    """Means of the groups that have all their columns, of the groups together, and of all columns."""
    found = {name: mean(own[c] for c in tasks) for name, tasks in groups.items() if set(tasks) <= own.keys()}
    if len(found) == len(groups) > 1:
        found["mean of groups"] = mean(found.values())
    if set(columns) <= own.keys():
        found["mean of tasks"] = mean(own[c] for c in columns)
    return found


def ppt(percent: float, parameters: float) -> float:
    """Performance-parameter trade-off of V-PETL (Xin et al., NeurIPS 2024): ``M exp(-log10(P / 10^7 + 1))``.

    Args:
        percent: Mean metric M in percent.
        parameters: Number P of trained parameters without the head.
    """
    return percent / 100 * exp(-log10(parameters / 1e7 + 1))


def letter(number: int) -> str:
    """Name of a protocol: A to Z, then AA to ZZ."""
    return chr(ord("A") + number % 26) * (number // 26 + 1)


def deviation(values: list[float]) -> float | None:
    """Standard deviation; None for one value."""
    return round(stdev(values), 3) if len(values) > 1 else None
