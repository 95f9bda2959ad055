"""COCO-Stuff, in small files of both layouts."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules.coco_stuff import UNUSED, COCOStuff, class_of_number
from tests.support.pictures import INPUT
from tests.support.scenes import write_pairs

NUMBERS = np.array([[0, 1, 182], [13, 11, 92]], np.uint8)  # of 10k: no class, the first, the last, and around gaps
CLASSES = [[255, 0, 170], [11, 10, 80]]


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """The layout of 164k, whose numbers are smaller by 1 and whose pixels without a class have 255."""
    for split, count in (("train2017", 2), ("val2017", 1)):
        masks = {f"{number:012d}": NUMBERS - 1 for number in range(count)}
        write_pairs(tmp_path / "images" / split, tmp_path / "annotations" / split, masks)
    return tmp_path


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The layout of 10k, with a reader of .mat files that reads PNG files under their names."""
    names = [f"COCO_train2014_{number:012d}" for number in range(3)]
    write_pairs(tmp_path / "images", tmp_path / "annotations", dict.fromkeys(names, NUMBERS))
    for name in names:
        (tmp_path / f"annotations/{name}.png").rename(tmp_path / f"annotations/{name}.mat")
    (tmp_path / "imageLists").mkdir()
    (tmp_path / "imageLists/train.txt").write_text("\n".join(names[:2]) + "\n")
    (tmp_path / "imageLists/test.txt").write_text(names[2])
    reader: Any = ModuleType("scipy.io")

    def loadmat(file: Path) -> dict[str, Any]:
        try:
            with Image.open(file) as image:
                return {"S": np.asarray(image).astype(np.uint16)}
        except OSError as error:
            raise ValueError("Unknown mat file type") from error

    reader.loadmat = loadmat
    monkeypatch.setitem(sys.modules, "scipy", ModuleType("scipy"))
    monkeypatch.setitem(sys.modules, "scipy.io", reader)
    return tmp_path


def test_numbers() -> None:
    """171 of 182 numbers are used, in their order."""
    table = class_of_number()
    used = [number for number in range(1, 183) if number not in UNUSED]
    assert table[used].tolist() == list(range(171))
    assert {int(table[number]) for number in (*UNUSED, 183, 254)} == {254}
    assert int(table[0]) == int(table[255]) == 255


def test_large(large: Path) -> None:
    data = COCOStuff(str(large))
    data.configure(INPUT)
    assert data.num_classes == 171
    assert [len(data.samples(split) or ()) for split in ("train", "test")] == [2, 1]  # type: ignore[arg-type]
    assert data.samples("val") is None
    assert data.both(data.samples("train")[0])[1][0].tolist() == CLASSES  # type: ignore[index]
    assert [data.expected(split) for split in ("train", "test")] == [118_287, 5_000]


def test_small(small: Path) -> None:
    data = COCOStuff(str(small), version="10k")
    data.configure(INPUT)
    assert [len(data.samples(split) or ()) for split in ("train", "test")] == [2, 1]  # type: ignore[arg-type]
    assert data.both(data.samples("test")[0])[1][0].tolist() == CLASSES  # type: ignore[index]
    assert [data.expected(split) for split in ("train", "test")] == [9_000, 1_000]
    assert len(data.fitting("train", data.samples("train")).keep([1])) == 1
    assert data.item_settings() != COCOStuff.item_settings(configured(small))


def configured(root: Path) -> COCOStuff:
    data = COCOStuff(str(root))
    data.configure(INPUT)
    return data


def test_mistakes(large: Path) -> None:
    data = configured(large)
    for value, message in ((UNUSED[0] - 1, "its mask has the class 254"), (200, "its mask has the class 254")):
        with pytest.raises(ValueError, match=message):
            data.labels(Image.fromarray(np.full((2, 3), value, np.uint8)))
    with pytest.raises(ValueError, match="its mask has the mode RGB"):
        data.labels(Image.fromarray(np.zeros((2, 3, 3), np.uint8)))
    with pytest.raises(ValueError, match="its mask is empty"):
        data.labels(Image.fromarray(np.full((2, 3), 255, np.uint8)))
    with pytest.raises(ValueError, match="reduce_zero_label=true"):
        COCOStuff(str(large), reduce_zero_label=True)


def test_mistakes_in_lists(small: Path) -> None:
    data = COCOStuff(str(small), version="10k")
    data.configure(INPUT)
    (small / "annotations/COCO_train2014_000000000000.mat").write_bytes(b"no mat")
    with pytest.raises(ValueError, match=r"train: 1 of 2 images .* is no Matlab file of numbers S"):
        data.fitting("train", data.samples("train"))
    (small / "images/COCO_train2014_000000000001.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"train.txt names 2 images; 1 files are missing, first .*001.jpg"):
        data.samples("train")
    (small / "imageLists/test.txt").write_text("\n")
    with pytest.raises(ValueError, match="lists no images"):
        data.samples("test")


def test_mat_files_need_scipy(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    pairs: Any = COCOStuff(str(small), version="10k").samples("train")
    with pytest.raises(ValueError, match=r"pip install scipy \(or `\.\[mat\]` here\)"):
        pairs.target(0)


def test_real_mat_file(tmp_path: Path) -> None:
    """A file as the archive has it, with more variables than the mask."""
    scipy = pytest.importorskip("scipy.io", reason="masks of COCO-Stuff 10k need scipy")
    write_pairs(tmp_path / "images", tmp_path / "annotations", {"a": NUMBERS})
    scipy.savemat(tmp_path / "annotations/a.mat", {"S": NUMBERS.astype(np.uint16), "names": ["person"]})
    (tmp_path / "imageLists").mkdir()
    (tmp_path / "imageLists/train.txt").write_text("a")
    data = COCOStuff(str(tmp_path), version="10k")
    data.configure(INPUT)
    assert data.both(data.samples("train")[0])[1][0].tolist() == CLASSES  # type: ignore[index]
