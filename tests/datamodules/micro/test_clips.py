"""Micro-clips."""

import hashlib

import numpy as np

from datamodules.micro.clips import COUNTS, FRAMES, MOTIONS, SIZE, draw, item_names, steps

HASH = "21b0e6834d6786505024cfdb0458b813fb91348e395551226dc3c81742bdf897"


def test_same_on_every_machine() -> None:
    """Hash of the frames of the first clips of each split."""
    digest = hashlib.sha256()
    for split in COUNTS:
        for index in range(5):
            digest.update(draw(split, index).frames.tobytes())
    assert digest.hexdigest() == HASH


def test_clips() -> None:
    clips = [draw(split, index) for split in COUNTS for index in range(10)]
    assert all(clip.frames.shape == (FRAMES, SIZE, SIZE, 3) and clip.frames.dtype == np.uint8 for clip in clips)
    assert len({clip.frames.tobytes() for clip in clips}) == len(clips)
    assert [clip.motion for clip in clips[:10]] == [*range(5)] * 2
    assert {clip.item for clip in clips} <= {*range(10)}
    assert (item_names()[0], len(item_names())) == ("T-shirt/top", 10)
    assert all(len({frame.tobytes() for frame in clip.frames}) > 3 for clip in clips)


def test_frames_without_their_order_tell_the_motion() -> None:
    """Start and direction change the order of the steps only, and no two motions have the same steps."""
    found = {
        motion: {frozenset(steps(motion, start, back)) for start in range(FRAMES) for back in (True, False)}
        for motion in MOTIONS
    }
    assert all(len(sets) == 1 for sets in found.values())
    assert len({*(next(iter(sets)) for sets in found.values())}) == len(MOTIONS)
    assert steps("across", 0, False) != steps("across", 1, False)
