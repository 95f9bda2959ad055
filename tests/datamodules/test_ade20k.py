"""ADE20K, in small files of the layout of ADEChallengeData2016."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.ade20k import ADE20K
from tests.support.pictures import INPUT
from tests.support.scenes import write_pairs

VALUES = np.array([[0, 1, 2], [150, 3, 0]], np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, prefix, count in (("training", "train", 2), ("validation", "val", 1)):
        masks = {f"ADE_{prefix}_{number:08d}": VALUES for number in range(count)}
        write_pairs(tmp_path / "images" / split, tmp_path / "annotations" / split, masks)
    return tmp_path


def test_splits_and_classes(root: Path) -> None:
    data = ADE20K(str(root))
    assert (data.num_classes, data.class_names[0], data.class_names[149]) == (150, "wall", "flag")
    assert [len(data.samples(split) or ()) for split in ("train", "test")] == [2, 1]  # type: ignore[arg-type]
    assert not data.validates
    assert data.kept_epoch == "last epoch"
    assert [data.expected(split) for split in ("train", "test")] == [20_210, 2_000]
    assert data.palette[:6] == [120, 120, 120, 180, 120, 120]
    assert len(data.palette) == 768


def test_best_test_epoch(root: Path) -> None:
    data = ADE20K(str(root), report_best_test=True)
    assert data.kept_epoch == "best test epoch"
    assert len(data.samples("val") or ()) == 1


def test_numbers_of_a_mask(root: Path) -> None:
    """0 is no class and 1 the first class; a mask that was converted before is read as it is."""
    data = ADE20K(str(root))
    data.configure(INPUT)
    labels = data.both(data.samples("train")[0])[1]  # type: ignore[index]
    assert labels[0].tolist() == [[255, 0, 1], [149, 2, 255]]
    Image.fromarray(np.full((2, 3), 151, np.uint8)).save(root / "annotations/training/ADE_train_00000001.png")
    with pytest.raises(ValueError, match="its mask has the class 150, outside 0 to 149"):
        data.fitting("train", data.samples("train"))
    assert ADE20K(str(root), reduce_zero_label=False).labels(Image.fromarray(VALUES % 150)).max() == 3
