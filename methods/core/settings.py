"""Options of the members of a run with several settings."""

from collections.abc import Mapping, Sequence
from inspect import signature
from itertools import product
from typing import Any

from callbacks.features.reusable import ReusableFeatures
from methods.core.base import PEFTMethod

# options that all members share, because there is one backbone, one sequence of batches and one optimizer
COMMON = {"backbone", "pretrained", "backbone_args", "num_classes", "drop_path", "mixup", "cutmix"}
COMMON |= {"optimizer", "adam_eps", "lr_interval"}


def expand(members: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    """Settings by name, from a list of settings or a grid.

    Raises:
        ValueError: If there is no setting, or two settings have the same name.
    """
    if isinstance(members, Mapping):
        scalars = [name for name, values in members.items() if not isinstance(values, (list, tuple))]
        if scalars:
            raise ValueError(f"members: a grid holds lists of values, and {scalars[0]} is {members[scalars[0]]!r}")
        members = [dict(zip(members, values, strict=True)) for values in product(*members.values())]
    settings: dict[str, dict[str, Any]] = {}
    for setting in members:
        options = {key: value for key, value in setting.items() if key != "name"}
        name = str(setting.get("name", "_".join(f"{key}={value}" for key, value in options.items())))
        if not name or name in settings or name == "best":
            raise ValueError(f"members: {name!r} is empty, given twice or 'best'; give each member another name")
        settings[name] = options
    if not settings:
        raise ValueError("members: expected a list of options, or a grid, with at least one member")
    return settings


def options_of(setting: dict[str, Any]) -> dict[str, Any]:
    """Options of the model in the setting of a member."""
    return {name: value for name, value in setting.items() if name != "seed"}


def check_settings(model: PEFTMethod, settings: dict[str, dict[str, Any]]) -> None:
    """Refuse options that must not differ between members.

    Raises:
        ValueError: If the method trains in the backbone, or an option is unknown or must be the same for all.
    """
    if not isinstance(model, ReusableFeatures):
        raise ValueError(
            f"members need a backbone that stays as it is: {model.method_name()} trains in the backbone, whose "
            "features change at every step"
        )
    if model.one_pass:
        raise ValueError(
            f"members need gradients, and {model.method_name()} is computed in one pass; give each setting its own run"
        )
    try:
        model.frozen_layers()
    except ValueError as error:
        raise ValueError(f"members need a backbone that stays as it is: {error}") from error
    known = {name for base in type(model).__mro__ for name in signature(base.__init__).parameters}  # type: ignore[misc]
    for name, setting in settings.items():
        same = COMMON & setting.keys()
        if same:
            raise ValueError(f"members: {name!r} has its own {', '.join(sorted(same))}, which all of them share")
        unknown = setting.keys() - known - {"seed"}
        if unknown:
            raise ValueError(f"members: {name!r} has {', '.join(sorted(unknown))}, no option of {type(model).__name__}")
