"""Run folders."""

import csv
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from commands.lightning.folders import run_folder
from tests.support.command_line import Answer, folders, snapshot


def test_what_a_fit_leaves(fitted: Path, images: Path) -> None:
    assert fitted.parent.parent.name == "SSFClassification"
    assert fitted.parent.name == images.name
    expected = {"config.yaml", "metrics.csv", "result.json", "curves.png", "checkpoints", "adapter"}
    assert expected <= {path.name for path in fitted.iterdir()}
    result = json.loads((fitted / "result.json").read_text())
    assert {"val/acc1", "test/acc1", "cost/trainable_params", "best/val/acc1"} <= result.keys()
    with (fitted / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert any(row.get("val/acc1") for row in rows)
    assert any(row.get("test/acc1") for row in rows)


def test_run_folders_are_never_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAFT_RUN_DIR", raising=False)
    made = [run_folder(tmp_path / "id") for _ in range(3)]
    assert [path.name for path in made] == ["id", "id-2", "id-3"]
    assert os.environ["GRAFT_RUN_DIR"] == str(made[-1])


def test_runs_that_start_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_RUN_DIR", "")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: run_folder(tmp_path / "method/data/id"), range(8)))
    assert len(set(made)) == 8
    assert all(folder.is_dir() for folder in made)


def test_run_root_that_is_a_file(
    base: list[str], model: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    answer = call("fit", *model, *base, "--run_root", tmp_path / "file")
    assert answer.code == 1
    assert "run_root: cannot make the folder" in answer.err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_that_never_began_leaves_nothing(
    base: list[str], model: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    answer = call("fit", *model, *base, "--data.root", tmp_path / "nowhere", "--run_root", tmp_path / "runs")
    assert answer.code == 1
    assert "nowhere" in answer.err
    assert not folders(tmp_path / "runs")


def test_config_of_a_run_repeats_it(fitted: Path, call: Callable[..., Answer], tmp_path: Path) -> None:
    before = snapshot(fitted)
    assert call("fit", "--config", fitted / "config.yaml", "--run_root", tmp_path).code == 0
    (again,) = folders(tmp_path)
    assert again.name == fitted.name
    assert snapshot(fitted) == before, "a run from a config writes where the config came from"
    ours, theirs = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (again, fitted))
    for config in (ours, theirs):
        del config["run_root"], config["trainer"]["logger"]
    assert ours == theirs
