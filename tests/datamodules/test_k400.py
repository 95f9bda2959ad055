"""K400."""

from pathlib import Path

from datamodules.k400 import K400
from tests.support.videos import write_clips


def test_lists(tmp_path: Path) -> None:
    write_clips(tmp_path / "clips", {"train": 1, "val": 1})
    (tmp_path / "clips/classes.txt").unlink()
    data = K400(root=str(tmp_path / "clips"))
    assert data.num_classes == 400
    assert data.expected("train") is None
    assert [len(data.samples(split) or ()) for split in ("train", "test")] == [3, 3]
