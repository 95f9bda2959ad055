"""COCO 2017."""

from pathlib import Path

from datamodules.coco import COCO
from tests.support.objects import write_objects


def write_coco(root: Path) -> None:
    """Two training and three validation images in the folders and files of COCO."""
    write_objects(root, {"train2017": 2, "val2017": 3})
    for split in ("train2017", "val2017"):
        (root / "images" / split).rename(root / split)
        (root / f"annotations/{split}.json").rename(root / f"annotations/instances_{split}.json")


def test_splits(tmp_path: Path) -> None:
    """The validation images are the test images, and a fit has none to choose an epoch by."""
    write_coco(tmp_path / "coco")
    data, best = COCO(str(tmp_path / "coco")), COCO(str(tmp_path / "coco"), report_best_test=True)
    counts = [
        [None if (found := d.samples(s)) is None else len(found) for s in ("train", "val", "test")]
        for d in (data, best)
    ]
    assert counts == [[2, None, 3], [2, 3, 3]]
    assert (data.kept_epoch, best.kept_epoch) == ("last epoch", "best test epoch")
    assert [data.expected(split) for split in ("train", "val", "test")] == [118_287, 5_000, 5_000]
