"""State of an optimizer that a resumed fit restores from a checkpoint."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from checkpoints.structure import check_entries, shown


def moments(optimizer: Optimizer, parameter: Tensor) -> dict[str, torch.Size]:
    """Shapes of what an optimizer keeps for a parameter after its first step, by name."""
    shape = parameter.shape
    if isinstance(optimizer, torch.optim.SGD):
        return {"momentum_buffer": shape}
    count = {"step": torch.Size()}
    if not isinstance(optimizer, torch.optim.Adafactor):
        return count | {"exp_avg": shape, "exp_avg_sq": shape}
    if parameter.dim() < 2:
        return count | {"variance": shape}
    return count | {"row_var": torch.Size([*shape[:-1], 1]), "col_var": torch.Size([*shape[:-2], 1, shape[-1]])}


def restore_moments(optimizer: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """Check a saved state, and leave its moments alone in it; a hook before ``Optimizer.load_state_dict``.

    Settings, such as betas, stay those of the optimizer, because options of this run define them.

    Args:
        optimizer: Optimizer of this run.
        saved: State of the same kind of optimizer over parameters of the same shapes.

    Returns:
        The state to load.

    Raises:
        ValueError: If the state does not fit the optimizer.
    """
    try:
        check_entries(saved, {"state": dict, "param_groups": list})
        groups = saved["param_groups"]
        for number, group in enumerate(groups):
            check_entries({str(number): group}, {str(number): dict}, "param_groups/")
            check_entries(group, {"params": list}, f"param_groups/{number}/")
        sizes = [len(group["params"]) for group in groups]
        expected = [len(group["params"]) for group in optimizer.param_groups]
        if sizes != expected:
            raise ValueError(f"it has groups of {shown(sizes)} parameters, and those of this run have {expected}")
        keys = [key for group in groups for key in group["params"]]
        if keys != list(range(len(keys))):
            raise ValueError(f"its parameters have the numbers {shown(keys)}; expected 0 to {len(keys) - 1}")
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if saved["state"]:
            for number, parameter in enumerate(parameters):
                check_moments(saved["state"].get(number), moments(optimizer, parameter), f"parameter {number}")
    except ValueError as error:
        raise ValueError(
            f"ckpt_path: no {type(optimizer).__name__} can go on from the state of the optimizer: {error}. Begin a new "
            "fit with the trained values, --model.init_from PATH"
        ) from error
    own = [
        {key: value for key, value in group.items() if key != "params"} | {"params": group_before["params"]}
        for group, group_before in zip(optimizer.param_groups, groups, strict=True)
    ]
    return {"state": {number: saved["state"][number] for number in keys if saved["state"]}, "param_groups": own}


def check_moments(found: Mapping[str, Any] | None, expected: Mapping[str, torch.Size], name: str) -> None:
    """Refuse moments of a parameter that are missing, of other shapes or not finite.

    Args:
        found: What is saved for the parameter.
        expected: Shapes by name.
        name: Name of the parameter in messages.

    Raises:
        ValueError: With the first of them that is wrong.
    """
    found = found or {}
    others = sorted(map(str, found.keys() - expected.keys()))
    if others:
        raise ValueError(f"{name} has {shown(others[0])}, which is of another optimizer")
    for key, shape in expected.items():
        tensor = found.get(key)
        if not isinstance(tensor, Tensor) or tensor.shape != shape or not tensor.is_floating_point():
            raise ValueError(
                f"its {key} of {name} is {shown(tensor)}; expected real numbers of the shape {tuple(shape)}"
            )
        if not tensor.isfinite().all():
            raise ValueError(f"its {key} of {name} holds NaN or infinity")
