"""Report about the classes of a test."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_auroc, multiclass_f1_score

from callbacks.class_report import (
    ClassReport,
    Kept,
    calibration_error,
    class_table,
    confusion,
    fit_temperature,
    write_classes,
)
from datamodules import ImageDataset
from methods import PEFTMethod
from tests.commands.lightning.conftest import call
from tests.conftest import BACKBONE, TINY, build_tiny, quiet_trainer
from tests.support.command_line import Answer, folders
from tests.support.ranks import TwoRanks

__all__ = ["call"]  # a fixture


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def made(count: int = 200, classes: int = 4) -> Kept:
    """Logits that are 3 times too large for their errors."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(count, classes, generator=draw)
    labels = torch.multinomial(logits.softmax(1), 1, generator=draw)[:, 0]
    return Kept(3 * logits, labels)


def test_scores_of_classes() -> None:
    kept = made()
    table = class_table(kept)
    shares = kept.logits.softmax(1)
    expected = multiclass_f1_score(shares, kept.labels, 4, average=None)
    torch.testing.assert_close(table["F1"].float(), expected)
    expected = multiclass_auroc(shares, kept.labels, 4, average=None)
    torch.testing.assert_close(table["AUROC"].float(), expected)
    counts = confusion(kept)
    by_hand = torch.zeros(4, 4, dtype=torch.long)
    for label, guess in zip(kept.labels.tolist(), kept.logits.argmax(1).tolist(), strict=True):
        by_hand[label, guess] += 1
    assert torch.equal(counts, by_hand)
    torch.testing.assert_close(table["accuracy"], counts.diagonal() / counts.sum(1).double())


def test_class_without_images(tmp_path: Path) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, -1.0]])
    table = class_table(Kept(logits, torch.tensor([0, 1])))
    write_classes(tmp_path / "classes.csv", table, ["a", "=b", "c"])
    assert rows(tmp_path / "classes.csv") == [
        ["class", "images", "accuracy", "precision", "F1", "AUROC"],
        ["a", "1", "1", "1", "1", "1"],
        ["'=b", "1", "1", "1", "1", "1"],
        ["c", "0", "", "", "", ""],
    ]


def test_temperature() -> None:
    """The best of a fine grid; it lowers the calibration error."""
    kept = made()
    found = fit_temperature(kept)
    grid = torch.linspace(0.5, 8, 751)
    losses = torch.stack([F.cross_entropy(kept.logits / t, kept.labels) for t in grid])
    assert found == pytest.approx(float(grid[losses.argmin()]), abs=0.01)
    assert 2 < found < 4
    assert calibration_error(kept._replace(logits=kept.logits / found)) < calibration_error(kept) / 2


def test_temperature_of_right_answers_alone() -> None:
    """Without errors any smaller temperature is better; the search ends."""
    found = fit_temperature(Kept(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1])))
    assert 0 < found < 0.5


def test_files_and_results(
    build: Callable[..., PEFTMethod], trainer: Callable[..., Trainer], images: Path, tmp_path: Path
) -> None:
    """A test of 14 images in batches of 4, with and without validation images."""
    data: Any = ImageDataset(root=str(images), batch_size=4, val_fraction=0.4)
    model: Any = build("linear_probe", num_classes=data.num_classes)
    run = trainer(callbacks=[ClassReport()])
    (found,) = run.test(model, datamodule=data, verbose=False)
    assert {"test/F1", "test/AUROC", "test/ECE", "test/temperature", "test/ECE_calibrated"} <= found.keys()
    matrix = rows(tmp_path / "confusion.csv")
    assert matrix[0][1:] == [row[0] for row in matrix[1:]] == data.class_names
    total = sum(int(cell) for row in matrix[1:] for cell in row[1:])
    assert total == len(data.splits["test"])
    hits = sum(int(row[number]) for number, row in enumerate(matrix[1:], 1))
    assert found["test/" + model.headline.name] == pytest.approx(hits / total)
    assert (tmp_path / "confusion.png").stat().st_size > 1000
    assert len(rows(tmp_path / "classes.csv")) == 1 + data.num_classes
    alone: Any = ImageDataset(root=str(images), batch_size=4, val_split="none")
    (found,) = trainer(callbacks=[ClassReport()]).test(model, datamodule=alone, verbose=False)
    assert "test/ECE" in found
    assert "test/temperature" not in found


def report_on_rank(rank: int, images: Path, weights: Path, folder: Path) -> dict[str, float]:
    run = quiet_trainer(folder, devices=2, strategy="ddp", callbacks=[ClassReport()])
    data: Any = ImageDataset(root=str(images), batch_size=4, val_fraction=0.4)
    (found,) = run.test(build_tiny(weights, "linear_probe"), datamodule=data, verbose=False)
    return dict(found)


def test_two_ranks(
    two_ranks: TwoRanks, trainer: Callable[..., Trainer], images: Path, weights: Path, tmp_path: Path
) -> None:
    """15 images, one of which is there twice to make the ranks equal: files and scores are those of one process."""
    ranks = two_ranks(report_on_rank, images, weights, tmp_path / "two")
    data: Any = ImageDataset(root=str(images), batch_size=4, val_fraction=0.4)
    (alone,) = trainer(callbacks=[ClassReport()]).test(
        build_tiny(weights, "linear_probe"), datamodule=data, verbose=False
    )
    for name, value in alone.items():
        assert ranks[0][name] == ranks[1][name] == pytest.approx(value, abs=1e-4), name
    for name in ("classes.csv", "confusion.csv"):
        assert rows(tmp_path / "two" / name) == rows(tmp_path / name)


def test_command_line(weights: Path, images: Path, call: Callable[..., Answer], tmp_path: Path) -> None:
    model = ["--method=linear_probe", f"--model.pretrained={weights}", f"--model.backbone={BACKBONE}"]
    model += [f"--model.backbone_args.{name}={value}" for name, value in TINY.items()]
    args = ["fit", *model, "--data=ImageDataset", f"--data.root={images}", "--data.batch_size=4", "--class_report=true"]
    args += ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    answer = call(*args, "--run_root", tmp_path / "refused")
    assert answer.code == 1
    assert "class_report=true: it is about a test; pass --test_after_fit true too" in answer.err
    answer = call(*args, "--test_after_fit=true", "--run_root", tmp_path / "runs")
    assert answer.code == 0, answer.err
    (run,) = folders(tmp_path / "runs")
    assert {"classes.csv", "confusion.csv", "confusion.png"} <= {file.name for file in run.iterdir()}
    result = json.loads((run / "result.json").read_text())
    assert {"test/F1", "test/AUROC", "test/ECE", "test/temperature", "test/ECE_calibrated"} <= result.keys()
    with pytest.raises(ValueError, match="class_report=true: str has no classes of images"):
        ClassReport().check("")
