"""Raise a Child in Large Language Model: Towards Effective and Generalizable Fine-tuning (arXiv:2109.05687).

``W' = W - lr * M * grad(W)`` with a mask M of zeros and ones: fixed (D), or drawn in each step and divided by p (F).
"""

from collections.abc import Iterable
from math import ceil
from typing import Any, Literal

import torch
from torch import Tensor

from backbones.anatomy import stem_parameters
from backbones.inject import Backbone
from callbacks.scoring.scorers import Scorer, SquaredGradients
from lightning_modules.run import datamodule_of
from lightning_modules.seed import derived_seed
from methods.core.trains_entries import TrainsEntries


class ChildTuning(TrainsEntries):
    """Child-Tuning, task-driven (D) or task-free (F) (Xu et al., EMNLP 2021, arXiv:2109.05687).

    Two differences from the authors' code: D trains no embeddings, and weight decay changes trained entries only.

    Args:
        child_variant: ``D`` trains those entries of the layers that have the largest Fisher information. ``F`` trains
            all parameters, and each step sets random gradients to zero.
        child_fraction: Share p of the layers' parameters that train (``D``), or of the gradients that a step keeps
            (``F``).
    """

    scorer: type[Scorer] | None = SquaredGradients

    def __init__(self, child_variant: Literal["D", "F"] = "D", child_fraction: float = 0.3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < child_fraction < 1:
            raise ValueError(f"child_fraction={child_fraction}: expected a share above 0 and below 1")
        self.child_variant, self.child_fraction = child_variant, child_fraction
        self.scorer = SquaredGradients if child_variant == "D" else None

    # D

    def score_targets(self) -> list[str]:
        """Names of the layers' parameters, without embeddings and classifier."""
        stem = stem_parameters(self.backbone)
        return [name for name in super().score_targets() if name not in stem]

    @property
    def score_data(self) -> dict[str, Any]:
        return {"batch_size": datamodule_of(self.trainer).batch_size, "shuffle": True}

    def score_key(self) -> str:
        return f"{super().score_key()} {self.loss_key()}"

    def select(self, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """Entries whose Fisher information is at least the (1 - p) quantile of all layers together.

        Raises:
            ValueError: If these are all entries.
        """
        every = torch.cat([score.flatten() for score in scores.values()])
        # a quantile between two values is interpolated: then only the upper value is at least as large
        threshold = every.kthvalue(ceil((len(every) - 1) * (1 - self.child_fraction)) + 1).values
        if every.min() >= threshold:
            raise ValueError(
                f"child_fraction={self.child_fraction} selects every entry: the Fisher information of more than the "
                f"rest is {float(threshold)}, the smallest; expected a smaller share"
            )
        return {n: (s.flatten() >= threshold).nonzero().flatten().to(torch.int32) for n, s in scores.items()}

    def adapt(self, backbone: Backbone) -> None:
        if self.child_variant == "D":
            super().adapt(backbone)

    # F

    def trainable_names(self) -> Iterable[str]:
        return self.used_names() if self.child_variant == "F" else []

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Set random gradients to zero, the same on every rank; the others are scaled so that the mean stays."""
        super().on_before_optimizer_step(optimizer)
        if self.child_variant == "F":
            draw = torch.Generator(self.device).manual_seed(derived_seed(self.global_step))
            for parameter in self.parameters():
                if parameter.grad is not None:
                    keep = torch.empty_like(parameter.grad).bernoulli_(self.child_fraction, generator=draw)
                    parameter.grad.mul_(keep).div_(self.child_fraction)
