"""Videos in class folders and tables."""

import shutil
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Value, Video

from datamodules.video_dataset import VideoDataset
from tests.support.videos import CLASSES, encoded, frames_of, write_clips


def test_class_folders(tmp_path: Path) -> None:
    """Folders of frames and files, in the folders of splits or without splits."""
    write_clips(tmp_path / "clips", {"train": 2, "test": 1})
    (tmp_path / "clips/train/red/film.mp4").write_bytes(encoded(frames_of(2, 4)))
    data = VideoDataset(root=str(tmp_path / "clips"))
    assert (data.class_names, data.num_classes) == ([*CLASSES], 3)
    sizes = [len(data.samples(split) or ()) for split in ("train", "val", "test")]
    assert sizes == [4, 3, 3]  # one of each class is held out
    lengths = {
        len(samples[i].video) for s in ("train", "val") if (samples := data.samples(s)) for i in range(len(samples))
    }
    assert lengths == {3, 4}
    shutil.move(tmp_path / "clips/train", tmp_path / "alone")
    alone = VideoDataset(root=str(tmp_path / "alone"), val_split="none")
    assert alone.class_names == [*CLASSES]
    assert len(alone.samples("train") or ()) == 7


def test_tables(tmp_path: Path) -> None:
    """Bytes in a parquet file, and paths from the folder of the file."""
    content = encoded(frames_of(0, 4))
    features = Features({"video": Video(decode=False), "label": ClassLabel(names=["a", "b"])})
    rows = {"video": [{"bytes": content, "path": None}] * 2, "label": [0, 1]}
    Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "train.parquet"))
    data = VideoDataset(root=str(tmp_path), val_split="none")
    samples = data.samples("train")
    assert samples is not None
    assert (data.class_names, samples.content(1), samples.name(1)) == (["a", "b"], content, "row 1")
    (tmp_path / "paths").mkdir()
    (tmp_path / "paths/film.mp4").write_bytes(content)
    columns = Features({"path": Value("string"), "label": Value("string")})
    table = Dataset.from_dict({"path": ["film.mp4"] * 2, "label": ["x", "y"]}, features=columns)
    table.to_parquet(str(tmp_path / "paths/train.parquet"))
    other = VideoDataset(root=str(tmp_path / "paths"), val_split="none").samples("train")
    assert other is not None
    assert len(other[1].video) == 4
    assert other.keep([1]).target(0) == 1


def test_no_videos(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="holds no class folders of videos"):
        VideoDataset(root=str(tmp_path)).samples("train")
