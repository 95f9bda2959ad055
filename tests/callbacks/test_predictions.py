"""Every row of the table belongs to its file."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer

from callbacks.predictions import Predictions, Row, as_text
from datamodules import ImageDataset
from methods import PEFTMethod
from tests.support.batches import as_batch

Build = Callable[..., PEFTMethod]
Data = Callable[..., ImageDataset]
MakeTrainer = Callable[..., Trainer]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("batch_size", [4, 15])
def test_predictions(batch_size: int, build: Build, data: Data, trainer: MakeTrainer, tmp_path: Path) -> None:
    model, module = build("linear_probe"), data(eval_batch_size=batch_size)
    trainer(callbacks=[Predictions()]).predict(model, datamodule=module)
    table = rows(tmp_path)
    assert [int(row["index"]) for row in table] == list(range(15))
    model.eval()
    for row in table:
        image, label = module.splits["test"][int(row["index"])]
        pixels = module.on_after_batch_transfer(as_batch(image[None], torch.tensor([label])), 0).inputs
        with torch.no_grad():
            probabilities = model(pixels).softmax(dim=1)[0]
        assert float(row["probability"]) == pytest.approx(float(probabilities.max()), abs=2e-5)
        assert row["class"] == module.class_names[int(probabilities.argmax())]
        assert Path(row["sample"]).is_file()
        assert Path(row["sample"]).parent.name == module.class_names[label]


def test_an_image_that_was_left_out_moves_no_name(
    build: Build, images: Path, trainer: MakeTrainer, tmp_path: Path
) -> None:
    root = tmp_path / "images"
    shutil.copytree(images, root)
    (root / "test/daisy/1.png").write_bytes(b"")
    module = ImageDataset(root=str(root), batch_size=4, on_corrupt="skip", max_corrupt=0.1)
    trainer(callbacks=[Predictions()]).predict(build("linear_probe"), datamodule=module)
    names = [str(Path(row["sample"]).relative_to(root / "test")) for row in rows(tmp_path)]
    assert names[:3] == ["daisy/0.png", "daisy/2.png", "daisy/3.png"]
    assert len(names) == 14


def test_rows_of_all_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(out: list[Any], own: Any) -> None:
        out[:] = [own, [Row(1, [1], [0.75]), Row(3, [0], [0.5])]]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    samples = SimpleNamespace(name=lambda index: f"image, {index}.png")
    module = SimpleNamespace(class_names=["a", "ä"], splits={"test": SimpleNamespace(samples=samples)})
    run: Any = SimpleNamespace(world_size=2, is_global_zero=True, log_dir=tmp_path, datamodule=module)
    mine = [torch.tensor([[0.9, 0.1]]), torch.tensor([[0.2, 0.8]])]
    task: Any = SimpleNamespace(targets="labels")
    Predictions().write_on_epoch_end(run, task, mine, [[[0], [2]]])
    assert [tuple(row.values()) for row in rows(tmp_path)] == [
        ("0", "image, 0.png", "a", "0.900000"),
        ("1", "image, 1.png", "ä", "0.750000"),
        ("2", "image, 2.png", "ä", "0.800000"),
        ("3", "image, 3.png", "a", "0.500000"),
    ]


@pytest.mark.parametrize("name", ['=HYPERLINK("x")', "+1+cmd", "-a", "@x", "\t=1"])
def test_formulas_become_text(name: str) -> None:
    assert as_text(name) == f"'{name}"


@pytest.mark.parametrize("name", ["rose", "-1", "+2.5", "a=b", "images/-1.png", ""])
def test_other_names_stay(name: str) -> None:
    assert as_text(name) == name


@pytest.mark.parametrize(("targets", "cells"), [("tags", "0.900000,0.125000"), ("numbers", "0.9,0.125")])
def test_tags_and_numbers(targets: str, cells: str, tmp_path: Path) -> None:
    """A column for each tag or number."""
    samples = SimpleNamespace(name=lambda index: f"{index}.png")
    names = {"class_names": ["a", "b"], "target_names": ["a", "b"]}
    module = SimpleNamespace(**names, splits={"test": SimpleNamespace(samples=samples)})
    run: Any = SimpleNamespace(world_size=1, is_global_zero=True, log_dir=tmp_path, datamodule=module)
    task: Any = SimpleNamespace(targets=targets)
    Predictions().write_on_epoch_end(run, task, [torch.tensor([[0.9, 0.125], [0.0, 1.0]])], [[[1, 0]]])
    lines = (tmp_path / "predictions.csv").read_text().splitlines()
    assert lines[0] == "index,sample,a,b"
    assert lines[2] == f"1,1.png,{cells}"
