"""Images without labels: one file or a folder."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from datamodules.image_files import ImageFiles


def test_folder_and_file(images: Path) -> None:
    data = ImageFiles(root=str(images / "test"), class_names=["a", "b", "c"])
    samples = data.samples("test")
    assert samples is not None
    assert len(samples) == 15
    assert samples.paths[0] == "daisy/0.png"
    assert (data.num_classes, data.samples("train"), data.samples("val")) == (3, None, None)
    one = ImageFiles(root=str(images / "test/rose/2.png"), class_names=["a", "b"]).samples("test")
    assert one is not None
    assert one.name(0) == str(images / "test/rose/2.png")
    with one.open(0) as image:
        assert image.size == (36, 40)


def test_what_is_no_image(tmp_path: Path, images: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"no image in this folder; expected \.jpg"):
        ImageFiles(root=str(tmp_path), class_names=["a", "b"])
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        ImageFiles(root=str(tmp_path / "other"), class_names=["a", "b"])
    with pytest.raises(ValueError, match=r"data\.class_names: expected the classes of the model"):
        ImageFiles(root=str(images))
    data: Any = ImageFiles(root=str(images), class_names=["a", "b"])
    data.trainer = SimpleNamespace(state=SimpleNamespace(fn="test"))
    with pytest.raises(ValueError, match="has no labels, which a test needs"):
        data.samples("test")
