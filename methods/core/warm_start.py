"""Starting from what another run of the same method trained (PVP, Song et al., 2023, arXiv:2304.13639)."""

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from checkpoints import delta as files
from checkpoints.fingerprint import fingerprint

if TYPE_CHECKING:
    from methods.core.base import PEFTMethod


def read_warm_start(method: "PEFTMethod", path: str) -> dict[str, Any]:
    """The other run's checkpoint.

    Args:
        method: The model that is to start from it.
        path: Its file, or its adapter folder.

    Raises:
        FileNotFoundError: If there is nothing at ``path``.
        ValueError: If the file is damaged, of another method, or of other options of this one.
    """
    start = files.read_checkpoint(path, option="init_from")
    here, there = method.method_name(), start["peft"]["method"]
    if here != there:
        raise ValueError(f"init_from={path!r} was trained with {there}, this run trains {here}")
    options, saved = dict(method.hparams), start["hyper_parameters"]
    differences = [
        f"{name}: {saved.get(name, default)!r} there, {options[name]!r} here"
        for name, default in method.method_options().items()
        if name in options and saved.get(name, default) != options[name] and name not in method.free_options()
    ]
    if differences:
        raise ValueError(
            f"init_from={path!r} was trained with other options: {'; '.join(sorted(differences))}. "
            "Give this run the same"
        )
    return start


def copy_warm_start(method: "PEFTMethod", start: dict[str, Any]) -> None:
    """Copy what the other run trained; its classifier only with ``init_head``, its optimizer never.

    Args:
        method: The adapted model.
        start: What ``read_warm_start`` returned.

    Raises:
        ValueError: If it was trained on other weights or other classes, or a tensor does not fit.
    """
    path = method.init_from
    heads = () if method.init_head else tuple(f"backbone.{name}." for name in method.head_names)
    expected = {name: t for name, t in method.delta_state_dict().items() if not name.startswith(heads)}
    found = {name: t for name, t in start["state_dict"].items() if not name.startswith(heads)}
    here, there = (", ".join(names or []) for names in (getattr(method, "class_names", []), start.get("class_names")))
    try:
        if method.init_other_backbone and start["peft"].get("fingerprint") != method.fingerprint:
            rank_zero_warn(f"init_from={path!r} was trained on other weights, of {start['peft']['backbone']}")
            start["peft"]["fingerprint"] = method.fingerprint
        files.check_backbone(method.description(), start["peft"])
        if method.init_head and here and there and here != there:
            raise ValueError(f"init_head: the classes are {there[:200]} there, {here[:200]} here")
        found = method.resize_warm_start(found)
        files.check_delta(expected, found)
    except ValueError as error:
        raise ValueError(f"init_from={path!r}: {error}") from error
    method.load_state_dict(method.state_dict() | found)
    method.started_from = {"path": str(path), "sha256": fingerprint(found)}
    trainer = method._trainer
    if trainer is not None and trainer.world_size > 1:
        digest = torch.tensor(int(method.started_from["sha256"][:15], 16), device=trainer.strategy.root_device)
        if trainer.strategy.all_gather(digest).unique().numel() > 1:
            raise ValueError(f"init_from={path!r}: the ranks read different files")
