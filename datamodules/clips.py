"""Videos of classes, as samples."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from datamodules.samples import Labelled
from datamodules.videos import Video, open_video


class ClipSample(NamedTuple):
    """Video as stored, and the number of its class."""

    video: Video
    target: int


class Clips(Labelled):
    """Videos of classes."""

    @abstractmethod
    def open(self, index: int) -> Video:
        """Video as stored. Raises ``OSError`` if there is none."""

    @abstractmethod
    def keep(self, indices: list[int]) -> "Clips": ...

    def __getitem__(self, index: int) -> ClipSample:
        return ClipSample(self.open(index), self.target(index))

    def content(self, index: int) -> bytes:
        """All bytes of a video."""
        return self.open(index).content()

    def stored(self, index: int) -> bytes:
        content = self.content(index)
        return f"{self.target(index)} {len(content)} ".encode() + content


class ClipFiles(Clips):
    """Video files, or folders of frames, below a folder.

    Args:
        root: Folder that the paths start from.
        paths: Path of each video below it.
        labels: Class of each video.
    """

    def __init__(self, root: Path, paths: Sequence[str], labels: Sequence[int]) -> None:
        self.root, self.paths = root, paths
        self.labels = torch.tensor(labels, dtype=torch.long)

    def open(self, index: int) -> Video:
        return open_video(self.root / self.paths[index])

    def name(self, index: int) -> str:
        return str(self.root / self.paths[index])

    def keep(self, indices: list[int]) -> "ClipFiles":
        return ClipFiles(self.root, [self.paths[i] for i in indices], self.labels[indices].tolist())
