"""Trained numbers that a backward pass divides by, such as the scales of SSF and the magnitudes of DoRA."""

from collections.abc import Sequence

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor

from lightning_modules.host_copy import HostCopy

SMALLEST = 1e-3  # division by a smaller number loses too many digits of the gradient


def away_from_zero(divisor: Tensor) -> Tensor:
    """Divisor with magnitudes of at least ``SMALLEST``, for numbers that have become small since the last look."""
    floor = torch.full_like(divisor, SMALLEST).copysign(divisor)
    return torch.where(divisor.abs() < SMALLEST, floor, divisor)


def divisible(divisor: Tensor, in_step: bool | None) -> bool:
    """Whether the backward pass of a layer may divide by its divisor.

    Args:
        divisor: The numbers that it divides by.
        in_step: Result of the look of this training step; None outside of a step.
    """
    if not torch.is_grad_enabled():
        return True
    if torch.compiler.is_compiling():  # one graph for all values; the compiler itself chooses what to keep
        return False
    if in_step is None:  # no cache by version, because fused optimizers do not change it
        return bool(divisor.detach().abs().min() >= SMALLEST)
    return in_step


def smallest(divisors: Sequence[Tensor]) -> Tensor:
    """Smallest magnitude of each layer's divisors, of all ranks if they are sharded."""
    sharded = [isinstance(divisor, DTensor) for divisor in divisors]
    if not any(sharded):
        return torch.stack([divisor.detach().abs().min() for divisor in divisors])
    parts = [divisor.to_local() if isinstance(divisor, DTensor) else divisor for divisor in divisors]
    # of an empty part too, which a rank can have if there are more ranks than channels
    found = torch.stack([torch.cat([part.detach().abs(), part.new_full((1,), torch.inf)]).min() for part in parts])
    distributed.all_reduce(found, distributed.ReduceOp.MIN)
    return found


class DivisorLook:
    """Look at the divisors of all layers in each training step, for which a GPU does not wait.

    A step uses the values of the step before, because these are on the host already. The first step of an epoch uses
    its own values, so that a run that resumes there computes the same.
    """

    def __init__(self) -> None:
        self.last: HostCopy | None = None

    def __call__(self, divisors: Sequence[Tensor], first: bool) -> list[bool]:
        """Whether each layer's divisors are large enough.

        Args:
            divisors: Divisors of each layer, all on one device.
            first: Whether this is the first step of an epoch.
        """
        now = HostCopy(smallest(divisors))
        used = now if first or self.last is None else self.last
        self.last = now
        return (used.read() >= SMALLEST).tolist()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()  # a copy of a model has no last step, and events of a GPU cannot be copied
