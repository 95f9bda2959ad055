"""Files of micro-clips."""

from pathlib import Path

import numpy as np
import pytest

from datamodules.micro import clip_files
from datamodules.micro.clips import draw
from datamodules.video_list import VideoList


def test_both_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``VideoList`` reads the clips as they were drawn, with the class of the garment or of the motion."""
    monkeypatch.setattr(clip_files, "COUNTS", {"train": 6, "val": 2, "test": 2})
    root = tmp_path / "deep/clips"
    clip_files.build(root)
    items, motions = (VideoList(root=str(root), lists=lists) for lists in ("items", "motions"))
    assert (items.num_classes, motions.class_names[1]) == (10, "up and down")
    for index in range(6):
        clip, samples = draw("train", index), motions.samples("train")
        assert samples is not None
        assert np.array_equal(samples[index].video.read([*range(8)]).permute(0, 2, 3, 1).numpy(), clip.frames)
        assert samples[index].target == clip.motion
        assert (items.samples("train") or [])[index].target == clip.item
    with pytest.raises(FileExistsError, match="remove it, or name another folder"):
        clip_files.build(root)
