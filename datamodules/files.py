"""Image files of published lists and of class folders."""

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

import torch
from PIL import Image

from datamodules.samples import IMAGE_SUFFIXES, LabelledSamples, open_image, regular


class Files(LabelledSamples):
    """Samples that are files below a folder.

    Args:
        root: Folder that the paths start from.
        paths: Path of each file below it.
        labels: Class of each file.
    """

    def __init__(self, root: Path, paths: Sequence[str], labels: Sequence[int]) -> None:
        self.root = root
        self.paths = paths
        self.labels = torch.tensor(labels, dtype=torch.long)

    def open(self, index: int) -> Image.Image:
        return open_image(self.root / self.paths[index])

    def content(self, index: int) -> bytes:
        return regular(self.root / self.paths[index]).read_bytes()

    def name(self, index: int) -> str:
        return str(self.root / self.paths[index])

    def keep(self, indices: list[int]) -> "Files":
        return Files(self.root, [self.paths[i] for i in indices], self.labels[indices].tolist())


def read_list(file: Path, root: Path) -> Files:
    """Images of a list file.

    Args:
        file: Its lines are ``path label``; paths may hold spaces.
        root: Folder that the paths start from.

    Raises:
        FileNotFoundError: If the list or its first or last image is missing.
        ValueError: If a line is no path and label, or a path leaves the folder.
    """
    return listed(file, root, read_rows(file))


def read_rows(file: Path) -> list[tuple[str, int]]:
    """Path and class number of each line ``path label`` of a list file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is no path and label.
    """
    rows = []
    for number, line in enumerate(read_text(file).split("\n"), 1):
        path, _, label = line.strip().rpartition(" ")
        if path and re.fullmatch(r"-?\d+", label):
            rows.append((path, int(label)))
        elif line.strip():
            raise ValueError(f"{file}, line {number}: expected a path, a space and a class number, found {line!r}")
    return rows


def read_text(file: Path) -> str:
    """Text of a list file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no UTF-8 text.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text: {error}") from error


def listed(file: Path, root: Path, rows: Sequence[tuple[str, int]]) -> Files:
    """Samples of the rows of a list, after a check of their paths.

    Args:
        file: The list, for messages.
        root: Folder that the paths start from.
        rows: Path and class number of each image.

    Raises:
        FileNotFoundError: If the first or the last image is missing.
        ValueError: If there are no rows, or a path leaves the folder.
    """
    if not rows:
        raise ValueError(f"{file} lists no images")
    for path, _ in rows:
        if PureWindowsPath(path).anchor or ".." in PureWindowsPath(path).parts:  # reads both kinds of slash
            raise ValueError(f"{file} names {path!r}, which lies outside {root}; refused")
    for path in (rows[0][0], rows[-1][0]):  # finds a half-copied archive before anything is decoded
        if not (root / path).exists():  # a folder, if it holds the frames of a video
            raise FileNotFoundError(f"{file} names {path}, but there is no such file in {root}")
    return Files(root, *zip(*rows, strict=True))


def existing(root: str) -> Path:
    """Path of a folder given on the command line.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    path = Path(root).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"data.root={root!r}: no such folder")
    return path


def class_folders(folder: Path, names: list[str], labels: list[int] | None = None) -> Files:
    """Images of class folders, all of which must be there.

    Args:
        folder: Folder of the class folders.
        names: Names of the class folders.
        labels: Class of each class folder; its place in ``names`` if not given.

    Raises:
        FileNotFoundError: If the folder or some of its class folders are missing or empty.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    rows, empty = [], []
    for name, label in zip(names, labels or range(len(names)), strict=True):
        inside = folder / name
        files = sorted(f for f in os.listdir(inside) if f.lower().endswith(IMAGE_SUFFIXES)) if inside.is_dir() else []
        rows += [(f"{name}/{file}", label) for file in files]
        empty += [] if files else [name]
    if empty:
        raise FileNotFoundError(
            f"{folder}: {len(empty)} of {len(names)} class folders are missing or empty, first {empty[0]}"
        )
    return Files(folder, *zip(*rows, strict=True))


def neighbours(path: Path) -> list[str]:
    """Existing folders whose names are close to that of a missing one."""
    if not path.parent.is_dir():
        return []
    folders = [folder.name for folder in path.parent.iterdir() if folder.is_dir()]
    return [str(path.parent / name) for name in difflib.get_close_matches(path.name, folders, n=3)]
