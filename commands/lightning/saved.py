"""The checkpoint that a command line names, read once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.delta import read_checkpoint
from checkpoints.resumable import check_evaluable, check_resumable
from checkpoints.structure import check_version
from lightning_modules import TASKS
from methods.core.saved_model import described_model

LIGHTNING_NAMES = ("best", "last", "hpc")  # words that Lightning accepts in the place of a path
NOT_SAVED = {option for task in TASKS.values() for option in task.links}  # the data give them, also with a checkpoint


@dataclass(frozen=True)
class Saved:
    """A checkpoint as far as the command line needs it.

    Args:
        path: Checkpoint file or adapter folder.
        class_path: Class of the model.
        options: Options of the model.
        ema_decay: Decay of the average of the trained parameters; None if the fit kept no average.
        adapter: Content of an adapter folder; None for a file, which Lightning reads again with its optimizer.
        classes: Names of the classes; their numbers if they have no names.
    """

    path: str
    class_path: str
    options: dict[str, Any]
    ema_decay: float | None
    adapter: dict[str, Any] | None
    classes: tuple[str, ...] = ()


def read_saved(path: str, subcommand: str = "test", named: str | None = None) -> Saved:
    """Read a checkpoint.

    Args:
        path: Checkpoint file or adapter folder.
        subcommand: Such as ``fit``, which needs the state of the optimizer too.
        named: Class that the command line names. It may be one that is not loaded yet, because the user trusts it.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If the file is damaged or not one of this project.
    """
    checkpoint = read_checkpoint(path)
    folder = Path(path).is_dir()
    try:
        if not folder:
            check_version(checkpoint)
            check_evaluable(checkpoint)
        if subcommand == "fit" and not folder:
            check_resumable(checkpoint)
        class_path: str = checkpoint["hyper_parameters"]["_class_path"]
        if class_path != named or class_path.startswith("methods."):
            described_model(checkpoint)
    except ValueError as error:
        raise ValueError(f"ckpt_path={path!r} cannot be used: {error}") from error
    options = {name: value for name, value in checkpoint["hyper_parameters"].items() if name not in NOT_SAVED}
    options.pop("_instantiator", None)
    class_path = options.pop("_class_path")
    average, adapter = checkpoint.get("ema_decay"), checkpoint if folder else None
    return Saved(path, class_path, options, average, adapter, classes_of(checkpoint))


def classes_of(checkpoint: dict[str, Any]) -> tuple[str, ...]:
    """Names of the classes of a checkpoint, or their numbers."""
    count = checkpoint["hyper_parameters"].get("num_classes") or 0
    return tuple(checkpoint["identity"].get("class_names") or map(str, range(count)))
