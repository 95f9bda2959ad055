"""Precision of trained tensors and BatchNorm statistics of a frozen backbone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import nn

from lightning_modules.adapted import AdaptedTask

BATCH_NORM = nn.modules.batchnorm._BatchNorm


def has_statistics(module: nn.Module) -> bool:
    """Whether a norm has running statistics: BatchNorm, and timm's EvoNorm."""
    return "running_var" in module._buffers


def kept_in_fp32(module: nn.Module) -> list[nn.Parameter]:
    """Parameters of one module that stay in fp32: trained ones, and frozen ones of the same norm."""
    parameters = list(module.parameters(recurse=False))
    trained = [p for p in parameters if p.requires_grad]
    return parameters if trained and all(p.dim() <= 1 for p in parameters) else trained


def updates_statistics(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm that trains in full, so that its statistics change in training."""
    parameters = list(module.parameters(recurse=False))
    return has_statistics(module) and bool(parameters) and all(p.requires_grad for p in parameters)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Create tensors in a dtype inside a ``with`` block."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


class KeepsPrecision(AdaptedTask):
    """An adapted task that keeps trained tensors in fp32 and BatchNorm statistics of the frozen backbone fixed."""

    precisions: tuple[str, ...] = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true")

    def refuse_precision(self) -> None:
        """Refuse a precision of the trainer in which the method cannot train.

        Raises:
            ValueError: With the precision and the possible ones.
        """
        precision = "32-true" if self._trainer is None else str(self.trainer.precision)
        if precision not in self.precisions:
            raise ValueError(
                f"trainer.precision={precision}: {self.method_name()} cannot train in it; expected one of "
                f"{', '.join(self.precisions)}"
            )

    def train(self, mode: bool = True) -> Self:
        """Set the mode; frozen BatchNorms stay in eval mode, so that their statistics do not change."""
        super().train(mode)
        for module in self.backbone.modules() if self.adapted else ():
            if has_statistics(module) and not updates_statistics(module):
                module.eval()
        return self

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Cast or move the module; a cast to bf16 or fp16 changes frozen tensors only."""
        # because a bf16 scale of 1.0 does not change by an Adam step of 1e-3
        modules = list(self.modules()) if self.adapted else []
        kept = [(p, p.data) for module in modules for p in kept_in_fp32(module)]
        statistics = [(m, n, b) for m in self.changing_norms() for n, b in m.named_buffers(recurse=False)]
        super().to(*args, **kwargs)
        for parameter, data in kept:
            if parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = data.to(parameter.device)
        for module, name, buffer in statistics:
            if getattr(module, name).dtype in (torch.bfloat16, torch.float16):
                setattr(module, name, buffer.to(getattr(module, name).device))
        return self

    def changing_norms(self) -> list[nn.Module]:
        """Norms whose running statistics change in training: those beside the backbone, and those that train in it."""
        frozen = (
            {m for m in self.backbone.modules() if not updates_statistics(m)} if self.adapted else set(self.modules())
        )
        return [m for m in self.modules() if has_statistics(m) and m not in frozen]

    def on_validation_start(self) -> None:
        """Average running statistics over ranks, so that each rank validates the model that rank 0 saves."""
        super().on_validation_start()
        for norm in self.changing_norms() if self.trainer.world_size > 1 else ():
            for buffer in [b for b in norm.buffers(recurse=False) if b.is_floating_point()]:
                buffer.copy_(self.trainer.strategy.reduce(buffer.clone(), reduce_op="mean"))
