"""SSv2."""

from pathlib import Path

from datamodules.ssv2 import SSv2
from tests.support.videos import write_clips


def test_lists(tmp_path: Path) -> None:
    write_clips(tmp_path / "clips", {"train": 1, "val": 1})
    (tmp_path / "clips/classes.txt").unlink()
    data = SSv2(root=str(tmp_path / "clips"))
    assert data.num_classes == 174
    assert (data.expected("train"), data.expected("test")) == (168_913, 24_777)
    assert [len(data.samples(split) or ()) for split in ("train", "test")] == [3, 3]
