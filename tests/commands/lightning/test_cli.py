"""Fits and evaluations through the command line."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import CLASSES, ROOT
from tests.support.command_line import Answer, folders


def test_data_of_one_class(images: Path, model: list[str], call: Callable[..., Answer], tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/rose").symlink_to(images / "train/rose")
    answer = call("fit", *model, "--data", "ImageDataset", "--data.root", tmp_path / "images", "--run_root", tmp_path)
    assert answer.code == 1
    assert "num_classes=1: expected at least 2 classes" in answer.err


@pytest.mark.parametrize("place", ["checkpoints/best.ckpt", "adapter"])
@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_evaluation_without_a_model(
    command: str, place: str, fitted: Path, base: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    assert call(command, "--ckpt_path", fitted / place, *base, "--run_root", tmp_path).code == 0
    (folder,) = folders(tmp_path)
    assert folder.name.startswith(f"{command}-")
    if command == "predict":
        with (folder / "predictions.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 15
        assert {row["class"] for row in rows} <= set(CLASSES)
    else:
        metric = {"test": "test/acc1", "validate": "val/acc1"}[command]
        first, second = (json.loads((path / "result.json").read_text()) for path in (fitted, folder))
        expected = first["best/val/acc1"] if command == "validate" else first[metric]
        assert second[metric] == pytest.approx(expected)


def test_an_adapter_cannot_be_resumed(fitted: Path, base: list[str], call: Callable[..., Answer]) -> None:
    answer = call("fit", "--ckpt_path", fitted / "adapter", *base, "--run_root", fitted / "elsewhere")
    assert answer.code == 1
    assert "is an adapter folder: it holds no optimizer state" in answer.err


def test_values_of_a_fit_with_a_recipe(
    model: list[str], base: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "# My numbers\nmethod: ssf\ndata: ImageDataset\nall:\n  model.lr: 0.1\n  model.ssf_std: 0.1 # l.9\n"
    )
    flags = ["--recipe", recipe, *model[2:], *base[2:], "--model.lr=0.2", "--run_root", tmp_path / "runs"]
    assert call("fit", *flags).code == 0
    (folder,) = folders(tmp_path / "runs")
    with (folder / "values.csv").open() as file:
        rows = {row["option"]: row for row in csv.DictReader(file)}
    assert (rows["model.ssf_std"]["value"], rows["model.ssf_std"]["source"]) == ("0.1", "l.9")
    assert rows["model.lr"]["source"] == "command line or config file"
    assert "mine.yaml:5 has 0.1 (My numbers)" in rows["model.lr"]["place"]
    assert rows["data.batch_size"]["source"] == "command line or config file"
    assert rows["model.optimizer"]["source"] == "default of Graft"


def test_two_processes_from_the_command_line(base: list[str], model: list[str], tmp_path: Path) -> None:
    """Lightning starts the second process with this command line: it must find the same run."""
    options = ["--trainer.devices=2", "--trainer.strategy=ddp", "--test_after_fit=true", "--run_root", str(tmp_path)]
    command = [sys.executable, str(ROOT / "train.py"), "fit", *model, *base, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (folder,) = folders(tmp_path)
    result = json.loads((folder / "result.json").read_text())
    assert result["world_size"] == 2
    assert "test/acc1" in result
