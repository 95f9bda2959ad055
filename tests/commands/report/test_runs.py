"""Which runs a report reads, and what it calls them."""

import json
import os
from pathlib import Path

import pytest

from tests.support.reports import make, rows, written
from train import main


def test_options_that_differ_join_the_name(tmp_path: Path) -> None:
    for rank, accuracy in {4: 60.0, 8: 65.0}.items():
        for task in ("dtd", "svhn"):
            make(tmp_path, "LoRA", task, 0, accuracy, {"lora_rank": rank})
    make(tmp_path, "SSF", "dtd", 0, 70.0, {"lr": 1})  # per task, and so no name
    make(tmp_path, "SSF", "svhn", 0, 70.0, {"lr": 2})
    written(tmp_path)
    assert {name: row["mean of tasks"] for name, row in rows(tmp_path).items() if "printed" not in name} == {
        "LoRA lora_rank=4 A": "60.0",
        "LoRA lora_rank=8 A": "65.0",
        "SSF A": "70.0",
    }


def test_the_newest_of_equal_runs_counts(tmp_path: Path) -> None:
    for age, accuracy in ((100, 10.0), (10, 20.0), (50, 30.0)):
        file = make(tmp_path, "SSF", "dtd", 0, accuracy) / "config.yaml"
        os.utime(file, (file.stat().st_mtime - age,) * 2)
    written(tmp_path)
    assert rows(tmp_path)["SSF A"]["dtd"] == "20.0"
    assert len(rows(tmp_path, "runs")) == 1


def test_cells_of_a_grid(tmp_path: Path) -> None:
    """The label wins over the method's class, a cell without a run is unfinished, and searches are no results."""
    for label, task, accuracy in (("vpt_deep", "dtd", 70.0), ("vpt_shallow", "dtd", 60.0), ("vpt_deep", "svhn", None)):
        cell = tmp_path / label / task / "s0"
        cell.mkdir(parents=True)
        (cell / "cell.json").write_text(json.dumps({"label": label, "task": task, "seed": 0}))
        if accuracy is not None:
            make(cell, "VPT", task, 0, accuracy)
    search = make(tmp_path / "search", "VPT", "dtd", 0, 99.0)
    (search.parent / "cell.json").write_text('{"search": {"model.lr": 1}}')
    text = written(tmp_path)
    assert {row["method"] for row in rows(tmp_path, "runs").values()} == {"vpt_deep", "vpt_shallow"}
    assert f"- vpt_deep, svhn, seed 0: `{tmp_path / 'vpt_deep/svhn/s0'}`" in text
    assert "99.00" not in text


@pytest.mark.parametrize(("file", "content"), [("result.json", "{"), ("result.json", "[]"), ("config.yaml", "a: [")])
def test_damaged_files_are_named(file: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path, "SSF", "dtd", 0, 70.0)
    (folder / file).write_text(content)
    with pytest.raises(SystemExit):
        written(tmp_path)
    assert f"{folder / file} is damaged" in capsys.readouterr().err


def test_folders_are_seen_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "runs", "SSF", "dtd", 0, 70.0)
    monkeypatch.chdir(tmp_path)
    main(["report", "runs", "--output", "report"])
    assert str(tmp_path) not in (tmp_path / "report" / "runs.csv").read_text()
    assert "runs/SSF/dtd/0" in (tmp_path / "report" / "runs.csv").read_text()
