"""Polyps of Kvasir-SEG, in small files of its layout."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.polyps import Polyps, hashed
from tests.support.pictures import INPUT
from tests.support.scenes import write_pairs
from train import main

MASK = np.array([[0, 3, 128], [129, 250, 255]], np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    masks = {f"cju{number:03d}": np.repeat(MASK[..., None], 3, 2) for number in range(25)}
    write_pairs(tmp_path / "Kvasir-SEG/images", tmp_path / "Kvasir-SEG/masks", masks)
    some = {name: masks[name] for name in list(masks)[:5]}
    other = tmp_path / "sessile-main-Kvasir-SEG"
    write_pairs(other / "images", other / "masks", some)
    return tmp_path


def test_split_by_hash(root: Path) -> None:
    """880 of 1,000; the same ones in every folder, whatever the order and the suffixes of the files."""
    data = Polyps(str(root))
    train, test = data.samples("train"), data.samples("test")
    assert train is not None
    assert test is not None
    assert (len(train), len(test), data.samples("val")) == (22, 3, None)
    names = [{Path(pairs.name(i)).stem for i in range(len(pairs))} for pairs in (train, test)]
    assert not names[0] & names[1]
    assert names[1] == {"cju010", "cju011", "cju018"}
    assert {split: len(part) for split, part in hashed(train.keep(list(range(22)) * 50)).items()} == {
        "train": 968,
        "test": 132,
    }
    assert [data.expected(split) for split in ("train", "val", "test")] == [880, None, 120]


def test_mask_is_thresholded(root: Path) -> None:
    """Masks are JPEG files with colours; above 128 is a polyp."""
    data = Polyps(str(root))
    data.configure(INPUT)
    labels = data.both(data.samples("train")[0])[1]  # type: ignore[index]
    assert labels[0].tolist() == [[0, 0, 0], [1, 1, 1]]
    assert data.class_names == ["background", "polyp"]
    with pytest.raises(ValueError, match="its mask is empty: no pixel is a polyp"):
        data.labels(Image.fromarray(np.zeros((2, 3), np.uint8)))
    with pytest.raises(ValueError, match="reduce_zero_label=true"):
        Polyps(str(root), reduce_zero_label=True)


def test_official_split_leaks(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Help, check_data and the results name the leak."""
    data = Polyps(str(root), split="official")
    assert [len(data.samples(split) or ()) for split in ("train", "test")] == [25, 5]  # type: ignore[arg-type]
    data.configure(INPUT)
    assert data.description()["split"] == "official"
    assert [data.expected(split) for split in ("train", "test")] == [1000, 196]
    with pytest.raises(SystemExit):
        main(["check_data", "--data", "Polyps", "--data.root", str(root), "--data.split", "official"])
    out = " ".join(capsys.readouterr().out.split())
    assert "note: leak: split=official tests on images of the training folder" in out
    assert "train and test share 5 of 25 images" in out
    assert "test: 5 images, expected 196" in out
    assert "training images too" in (Polyps.__doc__ or "")
