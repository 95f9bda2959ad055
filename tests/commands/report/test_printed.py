"""Numbers that papers print."""

from statistics import mean

import pytest
import yaml

import datamodules
from commands.report.leaderboard import averages, groups_of, ppt
from commands.report.printed import PRINTED, printed, sources
from tests.support.reports import TASKS


@pytest.mark.parametrize(
    ("method", "of_groups", "of_tasks"),
    [
        ("full", 68.97, 65.57),
        ("linear", 57.64, 52.94),
        ("bias", 65.22, 62.05),
        ("VPT-shallow", 67.82, 64.85),
        ("VPT-deep", 71.97, 69.43),
        ("Adapter of zeros", 59.95, 55.82),
        ("Adapter-8", 73.86, 71.44),
        ("LoRA-8", 74.60, 72.25),
        ("NOAH", 75.48, 73.25),
        ("AdaptFormer-8", 74.75, 72.32),
        ("FacT-TT", 75.34, 73.04),
        ("FacT-TK", 75.55, 73.23),
        ("Convpass", 76.56, 74.45),
        ("RepAdapter", 76.09, 73.84),
        ("SSF", 75.69, 73.10),
        ("DyT r=.5", 77.14, None),
        ("DyT r=.7", 77.57, None),
        ("DyT r=.9", 77.30, None),
        ("HST", 78.13, 75.99),
        ("GPS", 77.47, 75.18),
        ("DTL", 76.76, 74.58),
        ("SNF", 76.51, 74.10),
        ("Hydra", 76.48, 74.21),
        ("LAST", 76.44, 74.15),
        ("SCT", 76.00, 73.59),
        ("LST", 74.25, 71.70),
    ],
)
def test_printed_rows_have_their_printed_means(method: str, of_groups: float, of_tasks: float | None) -> None:
    """Papers give one mean or the other."""
    (row,) = [row for row in printed("VTAB") if row["method"] == method and row["source"] != "OSU"]
    assert row["source"] in sources()
    groups = {name: list(tasks) for name, tasks in groups_of("VTAB").items()}
    found = averages(row["values"], groups, TASKS)
    assert found["mean of groups"] == pytest.approx(of_groups, abs=0.015)  # of rounded numbers
    if of_tasks is not None:
        assert found["mean of tasks"] == pytest.approx(of_tasks, abs=0.011)


def test_rows_of_one_protocol() -> None:
    """15 methods, whose means the repository's files give."""
    rows = {row["method"]: row for row in printed("VTAB") if row["source"] == "OSU"}
    assert len(rows) == 15
    of_tasks = {name: mean(row["values"].values()) for name, row in rows.items()}
    expected = {"Convpass": 74.23, "AdaptFormer": 73.72, "LoRA": 72.91, "SSF": 72.98, "bias": 72.18, "linear": 55.86}
    assert {name: of_tasks[name] for name in expected} == pytest.approx(expected, abs=0.006)
    assert all(row["millions"] is not None for row in rows.values())


@pytest.mark.parametrize(
    ("method", "score"),
    [("linear", 0.53), ("LST", 0.65), ("HST", 0.74), ("GPS", 0.74), ("VPT-deep", 0.68), ("SSF", 0.72)],
)
def test_printed_ppt(method: str, score: float) -> None:
    row = next(row for row in printed("VTAB") if row["method"] == method and row["source"] != "OSU")
    percent = mean(row["values"].values())
    assert ppt(percent, row["millions"] * 1e6) == pytest.approx(score, abs=0.0101)  # V-PETL cuts or rounds


def test_printed_tables_name_our_tasks() -> None:
    content = yaml.safe_load(PRINTED.read_text())
    for dataset, table in content["tables"].items():
        assert table["tasks"] == list(getattr(getattr(datamodules, dataset), "tasks", [dataset]))
        assert all(len(row) == 2 + len(table["tasks"]) for row in table["rows"])
        assert {row[1] for row in table["rows"] + table.get("means", [])} <= content["sources"].keys()
        known = {(row[1], row[0]) for row in table["rows"]}
        assert {(source, name) for source, names in table.get("millions", {}).items() for name in names} <= known
    fgvc = {row["method"]: mean(row["values"].values()) for row in printed("FGVC") if "V-PETL" not in row["source"]}
    vpetl = {row["method"]: mean(row["values"].values()) for row in printed("FGVC") if "V-PETL" in row["source"]}
    means = {"GPS": 91.78, "SNF": 90.74, "SSF": 90.72, "HST": 90.46, "U-Tuning": 90.00, "LAST": 89.50, "LoRA": 84.78}
    assert {name: vpetl[name] for name in means} == pytest.approx(means, abs=0.011)
    printed_means = {"full": 88.54, "linear": 79.32, "bias": 88.40, "Adapter of zeros": 85.66, "VPT-deep": 89.10}
    assert {name: fgvc[name] for name in printed_means} == pytest.approx(printed_means, abs=0.011)
