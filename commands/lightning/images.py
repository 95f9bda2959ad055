"""Short form ``predict --images PATH``: images without labels, prepared as those of the run were."""

import json
from pathlib import Path
from typing import Any

import yaml

from commands.lightning.arguments import pop_flag

PREPARED = ("resize", "crop_pct", "interpolation", "image_size", "normalization")
"""Options of the data that decide which pixels a model gets; those of the run hold for new images as well."""


def image_flags(path: str, subcommand: str, args: list[str], ckpt_path: str | None, classes: list[str]) -> list[str]:
    """Flags that ``--images PATH`` stands for.

    Args:
        path: Image or folder of images.
        subcommand: The subcommand.
        args: The other options of the command line, which win.
        ckpt_path: Checkpoint file or adapter folder.
        classes: Names of the classes of the checkpoint.

    Raises:
        ValueError: If the subcommand is not ``predict``, or there is no checkpoint, or other data are named too.
    """
    if subcommand != "predict":
        raise ValueError(f"--images {path}: images without labels can be predicted only, and this is {subcommand}")
    if ckpt_path is None:
        raise ValueError(f"--images {path} needs a --ckpt_path, whose model predicts")
    if pop_flag(args, "--data")[0] is not None:
        raise ValueError(f"--images {path} and --data name different images: leave one of them out")
    flags = ["--data", "ImageFiles", f"--data.root={path}", f"--data.class_names={json.dumps(classes)}"]
    settings = run_settings(Path(ckpt_path))
    if settings is None:
        print(f"note: no config.yaml of the run beside {ckpt_path}: images are prepared as the backbone's own")
    for name, value in (settings or {}).items():
        if pop_flag(args, f"--data.{name}")[0] is None:
            flags.append(f"--data.{name}={value if isinstance(value, str) else json.dumps(value)}")
    return flags


def run_settings(ckpt_path: Path) -> dict[str, Any] | None:
    """Options ``PREPARED`` of the run of a checkpoint; None if it does not lie in the folder of a run."""
    inside = ckpt_path if ckpt_path.is_dir() else ckpt_path.parent
    file = inside.resolve().parent / "config.yaml"
    if not file.is_file():
        return None
    data = (yaml.safe_load(file.read_text()) or {}).get("data") or {}
    return {name: value for name, value in (data.get("init_args") or {}).items() if name in PREPARED and value}
