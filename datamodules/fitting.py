"""Which task reads which data."""

from typing import Any, NamedTuple


class Kind(NamedTuple):
    """A kind of data.

    Args:
        targets: Name of its targets in messages.
        task: Name of a task that reads it.
        data: A datamodule that has it.
    """

    targets: str
    task: str
    data: str


KINDS: dict[tuple[str, str], Kind] = {  # by the unit and the targets
    ("image", "labels"): Kind("labels of images", "classification", "ImageDataset"),
    ("image", "masks"): Kind("masks", "segmentation", "SegmentationFolder"),
    ("image", "tags"): Kind("tags", "multi_label", "TagFile"),
    ("image", "numbers"): Kind("numbers", "regression", "NumberFile"),
    ("image", "objects"): Kind("objects", "detection", "DetectionFolder"),
    ("image", "noise"): Kind("noise", "diffusion", "ImageDataset"),
    ("clip", "labels"): Kind("labels of clips", "video_classification", "VideoDataset"),
    ("text", "tokens"): Kind("tokens that follow", "language_modeling", "InstructionDataset"),
    ("text", "labels"): Kind("labels of texts", "text_classification", "TextTable"),
    ("text", "numbers"): Kind("numbers of texts", "text_regression", "TextTable"),
}


def check_targets(data: Any, task: Any) -> None:
    """Refuse data of another unit, or with targets of another kind, than those that a task reads.

    Args:
        data: A datamodule with the attributes ``unit`` and ``targets``.
        task: The task. A module from elsewhere without ``unit`` and ``targets`` reads anything.

    Raises:
        ValueError: With both and the options that fit.
    """
    unit, read = getattr(task, "unit", data.unit), getattr(task, "targets", data.targets)
    own, asked = KINDS[data.unit, data.targets], KINDS.get((unit, read))
    if unit != data.unit:
        fitting = f"--data {asked.data}" if asked and data.unit == "image" else f"--task {own.task}"
        raise ValueError(
            f"{type(data).__name__} has {data.unit}s, and {type(task).__name__} reads {unit}s: pass {fitting}"
        )
    if read != data.targets:
        named, remedy = (asked.targets, f", or --data {asked.data}") if asked else (read, "")
        raise ValueError(
            f"{type(data).__name__} has {own.targets}, and {type(task).__name__} reads {named}: pass --task "
            f"{own.task}{remedy}"
        )
