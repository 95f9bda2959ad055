"""Optimizers by name."""

from typing import Any, Literal, get_args

import torch
from torch.optim import Optimizer

from lightning_modules.optim.adam_atan2 import AdamATan2

OptimizerName = Literal["adamw", "adam", "sgd", "adam_atan2", "adafactor"]
OPTIMIZERS: tuple[str, ...] = get_args(OptimizerName)


def build_optimizer(name: str, groups: list[dict[str, Any]], lr: float, eps: float, fused: bool) -> Optimizer:
    """Build an optimizer over parameter groups.

    Args:
        name: One of ``OPTIMIZERS``. ``sgd`` has a momentum of 0.9.
        groups: Parameter groups; a group may have its own ``lr``, ``weight_decay`` and ``eps``.
        lr: Learning rate of groups without one.
        eps: Epsilon of ``adam`` and ``adamw``.
        fused: Whether one kernel updates all tensors. Only ``sgd``, ``adam`` and ``adamw`` have such a kernel.

    Raises:
        ValueError: If the name is unknown.
    """
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9, fused=fused)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, eps=eps, fused=fused)
    if name == "adam":
        return torch.optim.Adam(groups, lr=lr, eps=eps, fused=fused)
    if name == "adam_atan2":
        return AdamATan2(groups, lr=lr)
    if name == "adafactor":
        return torch.optim.Adafactor(groups, lr=lr)
    raise ValueError(f"optimizer={name!r}: expected one of {', '.join(OPTIMIZERS)}")
