"""Videos from a folder of class folders, parquet files, a saved dataset or the Hugging Face hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.base import Split
from datamodules.clips import Clips
from datamodules.image_dataset import ALIASES, ImageDataset, Rows
from datamodules.samples import IMAGE_SUFFIXES
from datamodules.video_module import VideoModule
from datamodules.videos import VIDEO_SUFFIXES, Video, VideoFile, open_video

if TYPE_CHECKING:
    # every function that needs it imports it, because the import takes a second that `--help` can do without
    import datasets


class VideoDataset(VideoModule, ImageDataset):
    """Labelled videos in the usual forms: class folders, parquet files, a saved dataset, a dataset of the hub.

    Args:
        root: A folder of ``train/<class>/*.mp4`` (or only ``<class>/*.mp4``), a folder of parquet files named after
            their split, a ``save_to_disk`` folder, or the id of a dataset on the Hugging Face hub. In the place of a
            video file there may be a folder with an image for each frame.
        video_column: Name of the column of videos, or of their paths; found by its type if not given.
    """

    kind = "Video"
    usual = ("video", "video_path", "path", "file")

    def __init__(self, root: str, video_column: str | None = None, **kwargs: Any) -> None:
        super().__init__(root=root, image_column=video_column, **kwargs)

    def load(self, asked: set[str]) -> "dict[str, datasets.Dataset]":
        root = Path(self.root).expanduser()
        forms = ("*.parquet", "data/*.parquet", "dataset_dict.json", "state.json", "metadata.*", "*/metadata.*")
        if root.is_dir() and not any(path for form in forms for path in root.glob(form)):
            return clip_folders(root, asked)
        return super().load(asked)

    def samples(self, split: Split) -> "ClipRows | None":
        if split not in self.tables:
            return None
        return ClipRows(self.tables[split], self.image_column or "", self.label_column or "", Path(self.root))


class ClipRows(Clips):
    """Videos that are rows of a Hugging Face dataset.

    Args:
        table: The dataset, with undecoded videos and integer labels.
        video_column: Name of the column of videos.
        label_column: Name of the column of labels.
        root: Folder that relative paths start from.
    """

    def __init__(self, table: "datasets.Dataset", video_column: str, label_column: str, root: Path) -> None:
        self.table, self.video_column, self.label_column, self.root = table, video_column, label_column, root
        self.labels = Rows(table, video_column, label_column).labels

    def open(self, index: int) -> Video:
        video = self.table[index][self.video_column]
        if video["bytes"] is not None:
            return VideoFile(video["bytes"])
        return open_video(self.root / video["path"])  # an absolute path stays

    def name(self, index: int) -> str:
        path = self.table[index][self.video_column]["path"]
        return path or f"row {index}"

    def keep(self, indices: list[int]) -> "ClipRows":
        return ClipRows(self.table.select(indices), self.video_column, self.label_column, self.root)


def clip_folders(root: Path, asked: set[str]) -> "dict[str, datasets.Dataset]":
    """Tables of class folders, which lie in the folders of splits or directly in the root.

    Args:
        root: The folder.
        asked: Names of splits beside the usual ones.

    Raises:
        ValueError: If there are no class folders of videos.
    """
    import datasets

    usual = {alias for aliases in ALIASES.values() for alias in aliases} | asked
    inside = {folder.name: folder for folder in folders(root)}
    splits = {n: f for n, f in inside.items() if (n in asked or n.lower() in usual) and any(map(clips_in, folders(f)))}
    rows = {
        split: [(str(clip.absolute()), labelled.name) for labelled in folders(folder) for clip in clips_in(labelled)]
        for split, folder in (splits or {"train": root}).items()
    }
    names = sorted({name for found in rows.values() for _, name in found})
    if not names:
        raise ValueError(
            f"data.root={str(root)!r} holds no class folders of videos ({', '.join(VIDEO_SUFFIXES)}) or of folders of "
            "frames, no parquet files and no saved dataset"
        )
    features = datasets.Features({"video": datasets.Video(decode=False), "label": datasets.ClassLabel(names=names)})
    return {
        split: datasets.Dataset.from_dict(
            {"video": [clip for clip, _ in found], "label": [name for _, name in found]}, features=features
        )
        for split, found in rows.items()
    }


def folders(folder: Path) -> list[Path]:
    """Folders inside a folder, without hidden ones."""
    return [f for f in sorted(folder.iterdir()) if f.is_dir() and not f.name.startswith((".", "__"))]


def clips_in(folder: Path) -> list[Path]:
    """Videos of a class: files, or folders that hold images."""
    files = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in VIDEO_SUFFIXES]
    return [f for f in files if not f.name.startswith(".")] + [f for f in folders(folder) if holds_images(f)]


def holds_images(folder: Path) -> bool:
    """Whether images lie in a folder."""
    return any(file.suffix.lower() in IMAGE_SUFFIXES for file in folder.iterdir())
