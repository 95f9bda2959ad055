"""HMDB51."""

from pathlib import Path

from datamodules.hmdb51 import HMDB51
from tests.support.videos import write_clips


def test_lists(tmp_path: Path) -> None:
    write_clips(tmp_path / "clips", {"train": 1, "val": 1})
    (tmp_path / "clips/classes.txt").unlink()
    data = HMDB51(root=str(tmp_path / "clips"))
    assert data.num_classes == 51
    assert (data.expected("train"), data.expected("test")) == (3_570, 1_530)
    assert [len(data.samples(split) or ()) for split in ("train", "test")] == [3, 3]
