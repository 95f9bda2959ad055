"""Videos as stored: a file that PyAV decodes, or a folder with an image for each frame."""

import io
import re
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from datamodules.samples import IMAGE_SUFFIXES, open_image, regular, upright

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")
INDEXED = ("mov", "matroska", "avi")  # formats in which a jump ends exactly at a key frame


class Video(ABC):
    """Frames of one video, decoded when they are asked for."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of frames. Raises ``OSError`` if the video cannot be read."""

    @abstractmethod
    def read(self, indices: list[int]) -> Tensor:
        """Frames (T, 3, H, W), uint8. Raises ``OSError`` if one cannot be decoded."""

    @abstractmethod
    def content(self) -> bytes:
        """All bytes of the video."""


class FrameFolder(Video):
    """Folder with an image for each frame, in the order of the numbers in their names.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def files(self) -> list[Path]:
        images = (file for file in self.folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        # 2.jpg before 10.jpg
        return sorted((f for f in images if not f.name.startswith(".")), key=lambda file: numbered(file.name))

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: list[int]) -> Tensor:
        frames = {}
        for index in sorted({*indices}):
            with open_image(self.files[index]) as image:
                frames[index] = vision.pil_to_tensor(upright(image))
        sizes = {tuple(frame.shape[1:]) for frame in frames.values()}
        if len(sizes) > 1:
            shown = ", ".join(f"{width} x {height}" for height, width in sorted(sizes))
            raise OSError(f"its frames have the sizes {shown} pixels; expected one size")
        return torch.stack([frames[index] for index in indices])

    def content(self) -> bytes:
        return b"".join(file.read_bytes() for file in self.files)


class VideoFile(Video):
    """Encoded video, of which only the needed parts are decoded.

    Args:
        source: Path of the file, or its bytes.
    """

    def __init__(self, source: Path | bytes) -> None:
        self.source = source

    def open(self) -> Any:
        """Open the container of the video.

        Raises:
            OSError: If it is no video.
        """
        av = decoder()
        file: Any = io.BytesIO(self.source) if isinstance(self.source, bytes) else str(regular(self.source))
        try:
            container = av.open(file)
        except (av.error.FFmpegError, ValueError) as error:
            raise OSError(f"it is no video: {error}") from error
        if not container.streams.video:
            container.close()
            raise OSError("it has no pictures, only other streams")
        container.streams.video[0].thread_count = 1  # a loader has a process for each core
        return container

    @cached_property
    def times(self) -> tuple[list[int], list[int]]:
        """Times of all frames and of those from which decoding can start, in the order of display."""
        av = decoder()
        with self.open() as container:
            try:
                packets = [p for p in container.demux(video=0) if p.pts is not None and not p.is_discard]
            except av.error.FFmpegError as error:
                raise OSError(f"it cannot be read to its end: {error}") from error
            indexed = container.format.name.split(",")[0] in INDEXED
            return sorted(p.pts for p in packets), sorted(p.pts for p in packets if p.is_keyframe and indexed)

    def __len__(self) -> int:
        return len(self.times[0])

    def read(self, indices: list[int]) -> Tensor:
        av = decoder()
        times, starts = self.times
        wanted = sorted({times[index] for index in indices})
        found: dict[int, Tensor] = {}
        with self.open() as container:
            stream, now = container.streams.video[0], None
            frames = container.decode(stream)
            try:
                for time in wanted:
                    start = max((s for s in starts if s <= time), default=None)
                    if start is not None and (now is None or start > now):  # jump over what nobody asked for
                        container.seek(start, stream=stream)
                        frames = container.decode(stream)
                    while now is None or now < time:
                        frame = next(frames)
                        now = frame.pts
                    if now == time:
                        found[time] = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
            except (av.error.FFmpegError, StopIteration):
                pass  # the missing frames are named below
        missing = [index for index in indices if times[index] not in found]
        if missing:
            raise OSError(f"its frame {missing[0]} of {len(times)} cannot be decoded")
        return torch.stack([found[times[index]] for index in indices])

    def content(self) -> bytes:
        return self.source if isinstance(self.source, bytes) else regular(self.source).read_bytes()


def open_video(path: Path) -> Video:
    """Video at a path: a folder of frames, or a file.

    Raises:
        OSError: If there is nothing.
    """
    return FrameFolder(path) if path.is_dir() else VideoFile(regular(path))


def decoder() -> Any:
    """PyAV, imported when the first video file is opened, because folders of frames do without it.

    Raises:
        ValueError: If it is not installed, with the command that installs it.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError(
            'video files need PyAV: pip install -e ".[video]"; folders with an image for each frame do not'
        ) from error
    av.logging.set_level(None)  # because we name damaged files ourselves
    return av


def numbered(name: str) -> list[tuple[int, str]]:
    """Key that sorts names by the numbers in them."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
