"""Datasets that `train.py prepare` writes, and what `check_data` finds in them."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from datamodules import ImageDataset
from tests.conftest import ROOT
from tests.datamodules.micro.test_build import cut
from train import main


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


def test_check_data_finds_it_whole(root: Path, small: None, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check_data", "--data", "MicroVTAB", "--data.root", str(root)])
    out = capsys.readouterr().out
    assert out.endswith("all there\n")
    assert "note:" not in out, "no image is in two lists"


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
    "a source of nothing": (["micro_vtab", "--output", "new", "--source", "x"], "is made from what is here"),
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
