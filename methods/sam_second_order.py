"""On the Effectiveness of Parameter-Efficient Fine-Tuning (arXiv:2211.15583).

``W = W0 + M * dW`` with a mask M of the entries that have the largest ``g^2 / h``: gradients g and diagonal h of the
Hessian.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from callbacks.scoring.scorers import (
    AbsoluteGradients,
    Curvature,
    GradientScorer,
    Magnitudes,
    RandomScores,
    Scorer,
    SignedGradients,
    SquaredGradients,
)
from callbacks.scoring.top import top, top_of_all
from lightning_modules.batch import Batch
from methods.core.trains_entries import TrainsEntries

SCORERS: dict[str, type[Scorer]] = {
    "grad_sum": SignedGradients,
    "grad_sq": SquaredGradients,
    "grad_abs": AbsoluteGradients,
    "grad_sq_over_hess": Curvature,
    "magnitude": Magnitudes,
    "random": RandomScores,
}


class SecondOrderSelection(TrainsEntries):
    """Second-order approximation method, SAM, not sharpness-aware (Fu et al., AAAI 2023, arXiv:2211.15583).

    The paper's theorem selects the largest g^2 / h. If h has one bound for all entries, these are the largest |g|.

    Args:
        sam_fraction: Share p of the backbone's parameters that train; tensors with fewer than 1/p entries get none.
        sam_criterion: Score of an entry, from its gradients g of the batches. ``grad_sum``: ``|sum g|``, the released
            score. ``grad_sq``: ``sum g^2``. ``grad_abs``: ``sum |g|``. ``grad_sq_over_hess``: ``|sum g|^2`` over an
            estimate of h (Hutchinson). The paper's comparisons: ``magnitude``, ``|w|``; ``random``.
        sam_scope: Range of the share. ``per_tensor``: p of each tensor, as in the released code. ``global``: p of all
            tensors together, as in the paper.
        sam_batches: Largest number of scored batches. The released code scores 599 and then trains on the next ones.
        sam_batch_size: Images of a scored batch.
        sam_passes: Largest number of scored passes over the training data.
        sam_clip: Norm to which the gradient of each batch is clipped before it is added; null for no clipping.
        sam_probes: Random vectors per batch for the estimate of h.
        sam_hessian_power: Exponent of h: 0.005 as released, 1 in the theorem.
    """

    scorer: type[Scorer] | None = SignedGradients

    def __init__(
        self,
        sam_fraction: float = 0.005,
        sam_criterion: Literal[
            "grad_sum", "grad_sq", "grad_abs", "grad_sq_over_hess", "magnitude", "random"
        ] = "grad_sum",
        sam_scope: Literal["per_tensor", "global"] = "per_tensor",
        sam_batches: int = 599,
        sam_batch_size: int = 16,
        sam_passes: int = 5,
        sam_clip: float | None = 1.0,
        sam_probes: int = 10,
        sam_hessian_power: float = 0.005,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 < sam_fraction < 1:
            raise ValueError(f"sam_fraction={sam_fraction}: expected a share above 0 and below 1")
        numbers = {"batches": sam_batches, "batch_size": sam_batch_size, "passes": sam_passes, "probes": sam_probes}
        for name, number in numbers.items():
            if number < 1:
                raise ValueError(f"sam_{name}={number}: expected at least 1")
        if sam_clip is not None and sam_clip <= 0:
            raise ValueError(f"sam_clip={sam_clip}: expected a positive norm, or null for no clipping")
        self.sam_fraction, self.sam_criterion, self.sam_scope = sam_fraction, sam_criterion, sam_scope
        self.sam_batches, self.sam_batch_size, self.sam_passes = sam_batches, sam_batch_size, sam_passes
        self.sam_clip, self.sam_probes, self.sam_hessian_power = sam_clip, sam_probes, sam_hessian_power
        self.scorer = SCORERS[sam_criterion]

    def build_scorer(self) -> Scorer:
        assert self.scorer is not None
        options: dict[str, Any] = {"clip": self.sam_clip} if issubclass(self.scorer, GradientScorer) else {}
        options |= {"probes": self.sam_probes} if self.scorer is Curvature else {}
        return self.scorer(self.backbone, self.score_targets(), **options)

    @property
    def score_data(self) -> dict[str, Any]:
        options = {"batch_size": self.sam_batch_size, "max_batches": self.sam_batches, "passes": self.sam_passes}
        return options | {"shuffle": True}

    def score_key(self) -> str:
        return f"{super().score_key()} {self.sam_clip} {self.sam_probes} {self.loss_key()}"

    def score_loss(self, batch: Batch) -> Tensor:
        if self.scorer is not Curvature:
            return self.loss(batch)
        with sdpa_kernel(SDPBackend.MATH):  # the only backend with second derivatives
            return self.loss(batch)

    def select(self, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """Entries with the largest scores; ``random`` draws each entry with probability ``sam_fraction``.

        Raises:
            ValueError: If no tensor is large enough to get an entry.
        """
        scores, share = self.ranks(scores), self.sam_fraction
        if self.sam_criterion == "random":
            chosen = {name: (score.flatten() < share).nonzero().flatten() for name, score in scores.items()}
        elif self.sam_scope == "per_tensor":
            chosen = {name: top(score.flatten(), int(share * score.numel())) for name, score in scores.items()}
        else:
            chosen = top_of_all(scores, int(share * sum(score.numel() for score in scores.values())))
        if not any(map(len, chosen.values())):
            largest = max(score.numel() for score in scores.values())
            raise ValueError(f"sam_fraction={share} selects nothing: the largest tensor has {largest} entries")
        return {name: indices.to(torch.int32) for name, indices in chosen.items()}

    def ranks(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compared values: ``|sum g|``, or ``2 log |sum g| - rho log max(|h|, 0.1)`` with the mean estimate h."""
        targets = {name: sums[name].abs() for name in self.score_targets()}
        if self.sam_criterion != "grad_sq_over_hess":
            return targets
        diagonal = {name: (sums[f"hessian/{name}"] / sums["count"]).abs().clamp(min=0.1) for name in targets}
        return {name: 2 * g.log() - self.sam_hessian_power * diagonal[name].log() for name, g in targets.items()}
