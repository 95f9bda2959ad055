"""Frames of a video that make a clip, as the video code of DyT (arXiv:2403.11808) chooses them for K400 and SSv2.

With a stride, frames lie that many frames apart (dense). With the stride 0, they lie evenly over the whole video
(uniform). A video may have fewer frames than a clip: the clip then repeats some.
"""

import torch


def training_frames(length: int, frames: int, stride: int) -> list[int]:
    """Indices of the frames of a training clip, at a random place (dense), or one of each part (uniform).

    Args:
        length: Frames of the video, at least 1.
        frames: Frames T of the clip.
        stride: Frames of the video from one frame of the clip to the next; 0 for uniform.
    """
    if stride == 0:
        return [start + int(torch.randint(end - start + 1, ())) for start, end in parts(length, frames)]
    span = stride * (frames - 1)
    if span + 1 >= length:  # the last frame that there is, again and again
        last = (length - 1) // stride * stride
        return [min(index * stride, last) for index in range(frames)]
    start = int(torch.randint(length - span, ()))
    return [start + index * stride for index in range(frames)]


def evaluation_frames(length: int, frames: int, stride: int, views: int = 1) -> list[list[int]]:
    """Indices of the frames of each clip of an evaluation.

    Args:
        length: Frames of the video, at least 1.
        frames: Frames T of a clip.
        stride: As in ``training_frames``.
        views: Clips, evenly from the start of the video to its end; 1 for the middle. Only 1 for uniform.
    """
    if stride == 0:
        return [[(start + end) // 2 for start, end in parts(length, frames)]]
    slide = max(length - (stride * (frames - 1) + 1), 0)
    starts = [slide // 2] if views == 1 else [round(slide / (views - 1) * view) for view in range(views)]
    return [[min(start + index * stride, length - 1) for index in range(frames)] for start in starts]


def parts(length: int, frames: int) -> list[tuple[int, int]]:
    """First and last frame of each of ``frames`` equal parts of a video; neighbours share a frame."""
    size = (length - 1) / frames
    return [(round(size * index), round(size * (index + 1))) for index in range(frames)]
