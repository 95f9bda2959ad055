"""report: what is missing, and printed numbers beside ours."""

from pathlib import Path
from typing import Any

import pytest

from commands.report.printed import sources
from tests.support.reports import make, rows, written
from train import main


def test_what_is_missing_is_shown(tmp_path: Path) -> None:
    for task in ("cifar", "dtd", "patch_camelyon"):
        for seed in (0, 1):
            make(tmp_path, "SSF", task, seed, 70.0)
            if (task, seed) != ("dtd", 1) and task != "patch_camelyon":
                make(tmp_path, "LoRA", task, seed, 60.0)
    crashed = make(tmp_path, "LoRA", "patch_camelyon", 0, None)
    begun = make(tmp_path, "GPS", "dtd", 0, None)
    (begun / "result.json").unlink()
    text = written(tmp_path)
    tasks = {line.split(" | ")[0]: line for line in text.partition("top-1 (%) of each task")[2].splitlines()}
    assert tasks["| LoRA"] == "| LoRA | A | 60.00 ± 0.00 | 60.00 (1 of 2 seeds) | - |"
    assert "natural (2 of 7)" in text
    assert "specialized (1 of 4)" in text
    assert "mean of 3 tasks" in text
    summary = next(line for line in text.splitlines() if line.startswith("| LoRA"))
    assert summary.split(" | ")[3:7] == ["60.00 (1 of 2 seeds)", "-", "-", "-"]
    assert f"`{crashed}`: not tested" in text
    assert f"`{begun}`: not tested" in text
    assert "mean of tasks" not in {k for k, v in rows(tmp_path)["LoRA A"].items() if v}


def test_one_protocol_needs_no_warning(tmp_path: Path) -> None:
    make(tmp_path, "SSF", "dtd", 0, 70.0)
    assert "not comparable" not in written(tmp_path)


def test_a_task_with_another_metric(tmp_path: Path) -> None:
    """Lower is better, shown as it is; and the speed counts another unit."""
    metric = {"name": "perplexity", "higher_is_better": False, "label": "perplexity", "scale": 1.0}
    about: dict[str, Any] = {"metric": metric, "dataset": "Text", "cost/images_per_s": None, "cost/tokens_per_s": 7.0}
    for method, value in {"LoRA": 12.5, "SSF": 11.5}.items():
        make(tmp_path, method, "wiki", 0, None, **about, **{"test/perplexity": value})
    make(tmp_path, "SSF", "dtd", 0, 70.0)
    text = written(tmp_path)
    part = text[text.index("## Text") :]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    assert "training tokens/s" in lines[0]
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| SSF", "| LoRA"]
    assert "| 11.50 |" in lines[2]
    assert "![perplexity against costs](Text.png)" in part
    assert rows(tmp_path, "runs")["LoRA 0"]["perplexity"] == "12.5"


def test_two_metrics_on_one_dataset_are_two_tables(tmp_path: Path) -> None:
    metric = {"name": "mIoU", "higher_is_better": True, "label": "mIoU (%)", "scale": 100.0}
    make(tmp_path, "SSF", "dtd", 0, 70.0)
    make(tmp_path, "SSF", "dtd", 1, None, metric=metric, **{"test/mIoU": 0.4})
    text = written(tmp_path)
    assert text.count("## VTAB") == 2
    assert {"VTAB-acc1.png", "VTAB-mIoU.png"} <= {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize(("place", "message"), [("nothing", "no such folder"), (".", "no run in")])
def test_nothing_to_report(place: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path / place)])
    assert message in capsys.readouterr().err


# what papers print


def test_printed_numbers_stand_beside_ours(tmp_path: Path) -> None:
    make(tmp_path, "SSF", "dtd", 0, 70.0)
    text = written(tmp_path)
    assert "| SSF, printed | [SSF] | " in text
    assert "| 75.10 |" in text
    assert f"- [SSF] {sources()['SSF']}" in text
    assert rows(tmp_path)["SSF (printed) SSF"]["dtd"] == "75.1"


def test_printed_numbers_of_a_set_without_tasks(tmp_path: Path) -> None:
    """Its column has the name of its folder; values are of the metric of its task."""
    metric = {"name": "mIoU", "higher_is_better": True, "label": "mIoU (%)", "scale": 100.0}
    ade: dict[str, Any] = {"dataset": "ADE20K", "data": "here/ADEChallengeData2016", "data_task": None}
    make(tmp_path, "hst", "ade", 0, None, metric=metric, **ade, **{"test/mIoU": 0.4512})
    text = written(tmp_path)
    (line,) = [line for line in text.splitlines() if line.startswith("| hst | A |")]
    assert "45.12" in line
    assert "| HST with UperNet, printed | [HST on ADE20K] |  | 47.00 |" in text
    assert "- [V-PETL] README of synbol" in text
