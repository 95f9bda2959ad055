"""Frames of clips."""

from pathlib import Path

import pytest
import torch

from datamodules.frame_sampling import evaluation_frames, training_frames
from tests.support.golden import Golden


def test_sampler_of_dyt(pytestconfig: pytest.Config) -> None:
    """All rows of its test sampler: length, frames, stride, views, view, and eight indices."""
    golden = Golden(Path(pytestconfig.getoption("--golden-dir")) / "dense_tasks.safetensors")
    rows = golden.tensors["video.index"].tolist()
    assert len(rows) == 30
    for length, frames, stride, views, view, *indices in rows:
        assert evaluation_frames(length, frames, stride, views)[view] == indices


def test_training_with_a_stride() -> None:
    """The start is random and the frames lie in the video; a short video repeats the last frame on the stride."""
    torch.manual_seed(0)
    clips = [training_frames(30, 4, 8) for _ in range(60)]
    assert {clip[0] for clip in clips} == {*range(6)}
    assert all(clip == [clip[0] + 8 * i for i in range(4)] for clip in clips)
    assert training_frames(25, 4, 8) == [0, 8, 16, 24]
    assert training_frames(20, 4, 8) == [0, 8, 16, 16]
    assert training_frames(1, 4, 8) == [0, 0, 0, 0]


def test_training_over_the_whole_video() -> None:
    """Each frame is drawn from its own part, both ends included."""
    torch.manual_seed(0)
    columns = zip(*(training_frames(9, 4, 0) for _ in range(80)), strict=True)
    assert [{*column} for column in columns] == [{0, 1, 2}, {2, 3, 4}, {4, 5, 6}, {6, 7, 8}]
    assert training_frames(1, 4, 0) == [0, 0, 0, 0]
    assert evaluation_frames(2, 4, 0) == [[0, 0, 0, 1]]
