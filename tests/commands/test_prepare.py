"""Micro-VTAB as `train.py prepare` writes it, and what the datamodule and `check_data` make of it."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules import ImageDataset, MicroVTAB
from datamodules.micro.shapes import SIZE, draw
from tests.conftest import ROOT
from train import main

TASKS = {"digits": 20, "shapes_loc": 20}  # two of them, with few test images, are enough to see the form


def cut(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MicroVTAB, "tasks", {task: MicroVTAB.tasks[task] for task in TASKS})
    patch.setattr(MicroVTAB, "test_sizes", TASKS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("micro") / "deep/micro vtab"
    with pytest.MonkeyPatch.context() as patch:
        cut(patch)
        main(["prepare", "--dataset", "micro_vtab", "--output", str(folder)])
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch)


def test_layout(root: Path) -> None:
    assert [path.name for path in root.parent.iterdir()] == [root.name], "nothing temporary is left"
    assert {path.name for path in root.iterdir()} == set(TASKS)
    for task in TASKS:
        lists = {path.stem: path.read_text() for path in (root / task).glob("*.txt")}
        lengths = {"train800": 800, "val200": 200, "train800val200": 1000, "test": 20}
        assert {name: len(text.splitlines()) for name, text in lists.items()} == lengths
        assert lists["train800val200"] == lists["train800"] + lists["val200"]
    assert lists["test"].startswith("images/test/000000.png 0\nimages/test/000001.png 1\n")


def test_pixels(root: Path) -> None:
    module = MicroVTAB(str(root), "shapes_loc")
    for split, name in {"train": "train800", "val": "val200", "test": "test"}.items():
        samples = module.samples(split)  # type: ignore[arg-type]
        assert samples is not None
        for index in (0, 17):
            image, label = draw("shapes_loc", name, index)
            with samples.open(index) as written:
                assert written.tobytes() == image.tobytes()
            assert samples.labels[index] == label
    with Image.open(root / "digits/images/train800/000000.png") as first:
        assert (first.mode, first.size) == ("RGB", (SIZE, SIZE))


def test_check_data_finds_it_whole(root: Path, small: None, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check_data", "--data", "MicroVTAB", "--data.root", str(root)])
    out = capsys.readouterr().out
    assert out.endswith("all there\n")
    assert "note:" not in out, "no image is in two lists"


@pytest.mark.parametrize("task", ["fashion_mnist", "digits"])
def test_shipped_images_are_enough(task: str) -> None:
    shipped = ImageDataset(f"assets/{task}_1k", "train800", "val200", "test")
    assert shipped.num_classes == MicroVTAB.tasks[task]
    lengths = [len(shipped.samples(split).labels) for split in ("train", "val")]  # type: ignore[union-attr]
    assert lengths == [800, 200]
    assert len(shipped.samples("test").labels) >= MicroVTAB.test_sizes[task]  # type: ignore[union-attr]


def test_digits_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.tile(np.arange(65) % 17, (1797, 1))
    table[:, 64] = np.arange(1797) % 10
    with gzip.open(tmp_path / "digits.csv.gz", "wt") as file:
        np.savetxt(file, table, fmt="%d", delimiter=",")
    output = tmp_path / "digits_1k"
    main(["prepare", "--dataset", "digits_1k", "--source", str(tmp_path / "digits.csv.gz"), "--output", str(output)])
    module = ImageDataset(str(output), "train800", "val200", "test")
    train, val, test = (module.samples(split) for split in ("train", "val", "test"))  # type: ignore[arg-type]
    assert train is not None
    assert val is not None
    assert test is not None
    assert (len(train.labels), len(test.labels)) == (800, 797)
    assert val.labels.tolist() == [index % 10 for index in range(800, 1000)]
    assert np.asarray(val.open(0))[0].tolist() == [0, 16, 32, 48, 64, 80, 96, 112]


FAULTS = {
    "output exists": (["micro_vtab", "--output", "assets"], "output='assets' exists"),
    "a source of nothing": (["micro_vtab", "--output", "new", "--source", "x"], "is made from what is shipped"),
    "no source": (["cifar10", "--output", "new"], "source=None: expected"),
    "source missing": (["digits_1k", "--output", "new", "--source", "nowhere"], "source='nowhere': no such file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    args, message = FAULTS[fault]
    with pytest.raises(SystemExit) as stop:
        main(["prepare", "--dataset", *args])
    assert stop.value.code == 1
    assert message in capsys.readouterr().err
    assert not Path("new").exists()
