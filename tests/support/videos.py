"""Small videos, in files and in folders of frames."""

import io
from pathlib import Path

import av
import numpy as np
from PIL import Image

CLASSES = ("blue", "green", "red")


def frames_of(label: int, length: int, seed: int = 0) -> np.ndarray:
    """Noise (T, 24, 32, 3), uint8, whose colour tells the class; a frame is brighter than the one before."""
    pixels = np.random.default_rng(seed).integers(0, 60, (length, 24, 32, 3), dtype=np.uint8)
    pixels[..., 2 - label] += 120
    return pixels + np.arange(length, dtype=np.uint8)[:, None, None, None]


def encoded(frames: np.ndarray, codec: str = "libx264", form: str = "mp4", key_frames: int = 12) -> bytes:
    """Bytes of a video file.

    Args:
        frames: uint8 pixels (T, H, W, 3).
        codec: Name of the encoder in FFmpeg.
        form: Name of the container in FFmpeg.
        key_frames: Frames from one key frame to the next at most.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.gop_size = "yuv420p", key_frames
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def write_frames(folder: Path, frames: np.ndarray) -> None:
    """Write a folder of frames, ``0.png``, ``1.png``, ..."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number}.png")


def write_clips(root: Path, counts: dict[str, int], length: int = 3) -> None:
    """Write clips ``SPLIT/CLASS/NUMBER/FRAME.png`` of three classes, the lists ``SPLIT.txt`` and ``classes.txt``.

    Args:
        root: New folder.
        counts: Number of clips of each class in each split.
        length: Frames of a clip.
    """
    root.mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    for split, count in counts.items():
        lines = []
        for label, name in enumerate(CLASSES):
            for number in range(count):
                path = f"{split}/{name}/{number}"
                write_frames(root / path, frames_of(label, length, seed=len(split) + number))
                lines.append(f"{path} {label}\n")
        (root / f"{split}.txt").write_text("".join(lines))
