"""What stands in result.json is what the trainer measured."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

import callbacks.result
from callbacks.cost import Cost
from callbacks.result import Result, draw_curves, revision
from datamodules import ImageDataset
from lightning_modules.classification import Classification
from methods import PEFTMethod

Build = Callable[..., PEFTMethod]
Data = Callable[..., ImageDataset]
MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def logged(trainer: MakeTrainer, tmp_path: Path) -> Callable[..., Trainer]:
    """A trainer with the callbacks of the command line that write into ``tmp_path``."""

    def make(**options: Any) -> Trainer:
        cost = Cost()
        callbacks = [
            cost,
            Result(cost),
            LearningRateMonitor(),
            ModelCheckpoint(tmp_path / "checkpoints", "best", "val/acc1", mode="max"),
        ]
        logger = CSVLogger(tmp_path, name="", version="")
        return trainer(**{"logger": logger, "callbacks": callbacks, "enable_checkpointing": True} | options)

    return make


def read(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def test_result_of_a_fit_and_its_test(
    build: Build, data: Data, logged: MakeTrainer, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, module, run = build("ssf"), data(), logged(max_epochs=2)
    run.fit(model, datamodule=module)
    fitted = read(tmp_path)
    assert fitted["method"] == "SSF"
    assert (fitted["class"], fitted["task"]) == ("SSFClassification", "Classification")
    assert fitted["data"] == str(images)
    assert (fitted["epochs"], fitted["steps"], fitted["seed"], fitted["world_size"]) == (2, 12, 0, 1)
    assert fitted["precision"] == "32-true"
    assert fitted["fingerprint"] == model.fingerprint
    assert fitted["code"] == revision()
    assert Path(fitted["checkpoint"]) == tmp_path / "checkpoints" / "best.ckpt"
    assert fitted["best/val/acc1"] >= fitted["val/acc1"]
    assert fitted["cost/trainable_params"] == sum(model.parameter_counts().values())
    measured = {name: float(value) for name, value in run.callback_metrics.items()}
    assert measured.items() <= fitted.items()
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("L").getcolors() or []) > 10, "an empty picture"

    tested = run.test(model, datamodule=module, ckpt_path="best", verbose=False)[0]
    assert {name: read(tmp_path)[name] for name in tested} == tested
    assert fitted["images"] == {"train": 24, "val": 9}
    fitted["images"]["test"] = 15  # read by the test
    assert fitted.items() <= read(tmp_path).items(), "the test forgets the fit"
    printed = capsys.readouterr().out
    assert "SSFClassification in" in printed
    assert "test/acc1" in printed
    stored = fitted["cost/storage_bytes"]
    assert f"{stored:,} ({stored / 1024:,.1f} KB)" in printed


def test_result_of_an_evaluation_alone(build: Build, data: Data, logged: MakeTrainer, tmp_path: Path) -> None:
    values = logged().validate(build("linear_probe"), datamodule=data(), verbose=False)[0]
    assert values.items() <= read(tmp_path).items()
    assert not (tmp_path / "curves.png").exists()


def test_random_weights_are_admitted(build: Build, data: Data, logged: MakeTrainer, tmp_path: Path) -> None:
    logged().validate(build("linear_probe", pretrained=False), datamodule=data(), verbose=False)
    assert read(tmp_path)["pretrained"] is False


def test_curves_of_metrics_without_validation(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,step,train/loss\n0,9,0.5\n1,19,0.25\n")
    draw_curves(tmp_path / "metrics.csv", tmp_path / "curves.png", Classification.headline)
    assert (tmp_path / "curves.png").stat().st_size > 1000


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_revision_of_the_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", "-C", str(tmp_path), *who, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    monkeypatch.setattr(callbacks.result, "__file__", str(tmp_path / "callbacks" / "result.py"))
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks" / "result.py").write_text("one")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert revision() is None  # no repository
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    git("tag", "v1")  # a name can move, a commit cannot
    assert revision() == git("rev-parse", "HEAD")
    (tmp_path / "callbacks" / "result.py").write_text("two")
    assert revision() == git("rev-parse", "HEAD") + "-dirty"
    monkeypatch.setenv("PATH", "")
    assert revision() is None
