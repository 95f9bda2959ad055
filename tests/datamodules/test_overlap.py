"""Training images in the test split are found by their bytes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from lightning import Trainer

from datamodules import ImageDataset, overlap
from methods import PEFTMethod

Build = Callable[..., PEFTMethod]


@pytest.fixture
def leaky(images: Path, tmp_path: Path) -> Path:
    """Images of which two of the 24 training images are test images under other names."""
    root = tmp_path / "leaky"
    shutil.copytree(images, root)
    for number in (0, 1):
        shutil.copy(root / f"train/rose/{number}.png", root / f"test/tulip/copy{number}.png")
    return root


def fit(root: Path, build: Build, make: Callable[..., Trainer], test_follows: bool = True, **options: bool) -> None:
    data = ImageDataset(root=str(root), batch_size=4, resize="direct", **options)
    if test_follows:
        data.will_test()
    make(max_steps=1, limit_val_batches=0).fit(build("linear_probe"), datamodule=data)


def test_refused(leaky: Path, build: Build, trainer: Callable[..., Trainer]) -> None:
    with pytest.raises(ValueError, match=r"share 2 of 24 images: .*rose/0.png = .*tulip/copy0.png, .*allow_overlap"):
        fit(leaky, build, trainer)


def test_allowed(
    leaky: Path, build: Build, trainer: Callable[..., Trainer], capsys: pytest.CaptureFixture[str]
) -> None:
    fit(leaky, build, trainer, allow_overlap=True)
    assert "note: train and test share 2 of 24 images" in capsys.readouterr().out
    fit(leaky, build, trainer, test_follows=False)
    assert "share" not in capsys.readouterr().out


def test_a_few_equal_images(
    leaky: Path,
    build: Build,
    trainer: Callable[..., Trainer],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(overlap, "LEAK", 0.1)
    fit(leaky, build, trainer)
    assert "note: train and test share 2 of 24 images" in capsys.readouterr().out


def test_large_sets_are_not_read(leaky: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ImageDataset(root=str(leaky))
    train, test = data.samples("train"), data.samples("test")
    assert train is not None
    assert test is not None
    assert len(overlap.shared_images(train, test)) == 2
    monkeypatch.setattr(overlap, "MOST", 30)
    assert not overlap.shared_images(train, test)


def test_line_about_a_leak(capsys: pytest.CaptureFixture[str]) -> None:
    line = "train and val share 6 of 100 images: a = b"
    assert overlap.leak("train", "val", 6, 100, "a = b") == [line]
    assert overlap.leak("train", "val", 0, 100, "") == []
    assert not capsys.readouterr().out
    assert overlap.leak("train", "val", 5, 100, "a = b") == []
    assert capsys.readouterr().out == "note: train and val share 5 of 100 images: a = b\n"
