"""Child-Tuning: only a child network of the backbone is updated."""

from collections.abc import Iterable
from math import ceil
from typing import Any, Literal

import torch
from torch import Tensor

from backbones.anatomy import FROZEN
from backbones.inject import Backbone
from callbacks.scoring.scorers import Scorer, SquaredGradients
from lightning_modules.run import datamodule_of
from lightning_modules.seed import derived_seed
from methods.core.trains_entries import TrainsEntries


class ChildTuning(TrainsEntries):
    """Child-Tuning, task-driven (D) or task-free (F) (Xu et al., EMNLP 2021, arXiv:2109.05687).

    D trains the entries of the layers with the largest Fisher information, F everything with gradients of which every
    step drops some at random. Unlike the authors' code, D trains no embeddings, and weight decay moves no entry that
    does not train.

    Args:
        child_variant: ``D`` or ``F``.
        child_fraction: Share p of the layers' parameters that train (D), or of the gradients that a step keeps (F).
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
        """The parameters of the layers, without embeddings and classifier."""
        return [name for name in super().score_targets() if not any(word in name for word in FROZEN)]

    @property
    def score_data(self) -> dict[str, Any]:
        return {"batch_size": datamodule_of(self.trainer).batch_size, "shuffle": True}

    def score_key(self) -> str:
        return f"{super().score_key()} {self.loss_key()}"

    def select(self, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """All entries from the (1 - p) quantile of the Fisher information of all layers on.

        Raises:
            ValueError: If that is every entry.
        """
        every = torch.cat([score.flatten() for score in scores.values()])
        # between two values the quantile is an interpolation, from which on the upper one counts
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
        return [name for name, _ in self.backbone.named_parameters()] if self.child_variant == "F" else []

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop gradients at random, the same on every rank, and scale the others so that the mean stays."""
        super().on_before_optimizer_step(optimizer)
        if self.child_variant == "F":
            draw = torch.Generator(self.device).manual_seed(derived_seed(self.global_step))
            for parameter in self.parameters():
                if parameter.grad is not None:
                    keep = torch.empty_like(parameter.grad).bernoulli_(self.child_fraction, generator=draw)
                    parameter.grad.mul_(keep).div_(self.child_fraction)
