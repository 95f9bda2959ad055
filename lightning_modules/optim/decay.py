"""Trained parameters with weight decay, by the rules of the published codes."""

from collections.abc import Callable
from typing import Any, Literal

from torch import nn

from backbones.anatomy import NORMS

Decayed = Literal["matrices", "all", "all_but_bias", "all_but_norm_and_bias", "all_but_head_bias"]


def decays(rule: Decayed, name: str, parameter: nn.Parameter, model: nn.Module, in_head: bool) -> bool:
    """Whether a parameter has weight decay by a rule.

    Args:
        rule: ``matrices``: two dimensions or more, without those of size 1. ``all``: every parameter. The other rules
            leave out names with "bias", names with "bias" and parameters in norms, or names with "bias" in the head.
        name: Name of the parameter in the model.
        parameter: The parameter.
        model: The model.
        in_head: Whether the parameter belongs to the head.
    """
    if rule == "matrices":
        return parameter.squeeze().dim() > 1
    if rule == "all_but_head_bias":
        return not (in_head and "bias" in name)
    if rule == "all_but_norm_and_bias" and in_norm(name, model):
        return False
    return rule == "all" or "bias" not in name


def in_norm(name: str, model: nn.Module) -> bool:
    """Whether a parameter belongs to a norm, or to a module that was added to one."""
    parts = name.split(".")[:-1]
    return any(isinstance(model.get_submodule(".".join(parts[: i + 1])), NORMS) for i in range(len(parts)))


def decay_groups(
    parameters: dict[str, nn.Parameter], weight_decay: float, decayed: Callable[[str, nn.Parameter], bool]
) -> list[dict[str, Any]]:
    """Parameter groups: first the parameters with weight decay, then those without; no empty group.

    Args:
        parameters: Trained parameters by name.
        weight_decay: Decay of the first group.
        decayed: Whether a parameter, given with its name, belongs to the first group.
    """
    chosen = {name for name, parameter in parameters.items() if decayed(name, parameter)}
    groups = [
        {"params": [p for name, p in parameters.items() if name in chosen], "weight_decay": weight_decay},
        {"params": [p for name, p in parameters.items() if name not in chosen], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
