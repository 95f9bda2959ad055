"""Command lines that contradict a checkpoint, or use a method that chooses nothing."""

from typing import Any

from lightning import LightningModule

from commands.lightning.saved import NOT_SAVED, Saved
from methods import METHODS
from methods.core.saved_model import saved_class
from methods.core.selective import Selective


def refuse_names(path: str | None) -> None:
    """Refuse Lightning's words for a checkpoint of the same folder.

    Raises:
        ValueError: If the path is ``best`` or ``last``.
    """
    if path in ("best", "last"):
        raise ValueError(
            f"ckpt_path={path!r}: every run has a folder of its own, and this one's holds no checkpoint yet. "
            f"Give the file, RUN/checkpoints/{path}.ckpt"
        )


def refuse_conflicts(saved: Saved, class_path: str, options: dict[str, Any], ema_decay: float | None) -> None:
    """Refuse options that differ from those in the checkpoint that is to be loaded.

    Args:
        saved: The checkpoint.
        class_path: Class of the model on the command line.
        options: Options of the model on the command line.
        ema_decay: Decay of the average on the command line.

    Raises:
        ValueError: With both values of every option that differs.
    """
    # options about the start of a run, which a resumed run does not use
    starts = getattr(saved_class(saved.class_path), "warm_start_options", ())
    before, now = saved.options | {"ema.decay": saved.ema_decay}, options | {"ema.decay": ema_decay}
    differences = [
        f"{name}: {before[name]!r} in the checkpoint, {now[name]!r} here"
        for name in before.keys() & now.keys() - {*NOT_SAVED, *starts}
        if now[name] != before[name] and not name.startswith("eval_")  # which change nothing that is trained
    ]
    if saved.class_path != class_path:
        differences.insert(0, f"class: {saved.class_path} in the checkpoint, {class_path} here")
    if differences:
        raise ValueError(
            f"ckpt_path={saved.path!r} was trained with other options: {'; '.join(sorted(differences))}. "
            "Leave them out, or pass --override_checkpoint true"
        )


def refuse_to_score(model: LightningModule, name: str, path: str | None) -> None:
    """Refuse ``score`` where there is nothing to score.

    Args:
        model: The model.
        name: Names of its methods.
        path: The checkpoint of the command line.

    Raises:
        ValueError: If the method chooses nothing from data, or has chosen.
    """
    if not isinstance(model, Selective) or model.scorer is None:
        known = ", ".join(name for name, method in METHODS.items() if issubclass(method, Selective) and method.scorer)
        raise ValueError(f"{name} chooses nothing from data; methods that do: {known}")
    if path:
        raise ValueError(f"ckpt_path={path!r} holds a selection: leave it out to score anew")
