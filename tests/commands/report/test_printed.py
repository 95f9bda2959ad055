"""Numbers that papers print."""

from statistics import mean

import pytest
import yaml

import datamodules
from commands.report.leaderboard import averages, groups_of
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
    ],
)
def test_printed_rows_have_their_printed_means(method: str, of_groups: float, of_tasks: float | None) -> None:
    """Papers give one mean or the other."""
    (row,) = [row for row in printed("VTAB") if row["method"] == method]
    assert row["source"] in sources()
    groups = {name: list(tasks) for name, tasks in groups_of("VTAB").items()}
    found = averages(row["values"], groups, TASKS)
    assert found["mean of groups"] == pytest.approx(of_groups, abs=0.015)  # of rounded numbers
    if of_tasks is not None:
        assert found["mean of tasks"] == pytest.approx(of_tasks, abs=0.011)


def test_printed_tables_name_our_tasks() -> None:
    content = yaml.safe_load(PRINTED.read_text())
    for dataset, table in content["tables"].items():
        assert table["tasks"] == list(getattr(getattr(datamodules, dataset), "tasks", [dataset]))
        assert all(len(row) == 2 + len(table["tasks"]) for row in table["rows"])
        assert {row[1] for row in table["rows"]} <= content["sources"].keys()
    fgvc = {row["method"]: mean(row["values"].values()) for row in printed("FGVC")}
    printed_means = {"full": 88.54, "linear": 79.32, "bias": 88.40, "Adapter of zeros": 85.66, "VPT-deep": 89.10}
    assert {name: fgvc[name] for name in printed_means} == pytest.approx(printed_means, abs=0.011)
