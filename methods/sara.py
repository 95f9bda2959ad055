"""SaRA: High-Efficient Diffusion Model Fine-tuning with Progressive Sparse Low-Rank Adaptation (arXiv:2409.06633).

``L = L_task + lambda ||P * M||_*`` where only the entries M of the parameters P with ``|w| < threshold`` train.
"""

from math import exp
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from backbones.inject import Backbone
from callbacks.scoring.scorers import Magnitudes
from lightning_modules.seed import run_seed
from methods.core.trains_entries import TrainsEntries

# as in the released code, no penalty for matrices whose shorter side is not above this, or with no more chosen entries
SMALLEST_SIDE = 64
FEWEST_ENTRIES = 100


class SaRA(TrainsEntries):
    """Training the smallest weights, sparse and of low rank (Hu et al., ICLR 2025, arXiv:2409.06633).

    Args:
        sara_fraction: Share of the weights of ``sara_scope`` that train: those with the smallest |w|. Not used if
            ``sara_threshold`` is given.
        sara_threshold: Weights with |w| below this number train; the paper uses 2e-4 to 2e-3 for Stable Diffusion.
        sara_scope: Weights to choose from. ``matrices``: weights of linear and convolutional layers. ``all``: all
            parameters except the classifier's, as in the released code.
        sara_rank_weight: Weight of the nuclear norm penalty. Each step draws one matrix, and the penalty is the nuclear
            norm of its trained entries.
        sara_rank_convs: Whether the draw includes kernels of convolutions, flattened to matrices.
        sara_progressive: Share of the training after which the trained entries are chosen once more: entries with |w|
            of the threshold or more stop training. null: all entries train to the end.
        sara_reset_moments: Whether the second choice resets the optimizer's moments of the entries.
        sara_lr_rule: Whether entries train with ``lr * exp(-350 threshold)``, the paper's rule for ``lr`` 1e-3.
    """

    scorer = Magnitudes

    def __init__(
        self,
        sara_fraction: float = 0.01,
        sara_threshold: float | None = None,
        sara_scope: Literal["matrices", "all"] = "matrices",
        sara_rank_weight: float = 5e-4,
        sara_rank_convs: bool = False,
        sara_progressive: float | None = 0.5,
        sara_reset_moments: bool = False,
        sara_lr_rule: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 < sara_fraction < 1:
            raise ValueError(f"sara_fraction={sara_fraction}: expected a share above 0 and below 1")
        if sara_threshold is not None and sara_threshold <= 0:
            raise ValueError(f"sara_threshold={sara_threshold}: expected a positive number; no |w| is below it")
        if sara_rank_weight < 0:
            raise ValueError(f"sara_rank_weight={sara_rank_weight}: expected 0 or a positive number")
        if sara_progressive is not None and not 0 < sara_progressive < 1:
            raise ValueError(f"sara_progressive={sara_progressive}: expected a share above 0 and below 1, or null")
        self.sara_fraction, self.sara_threshold, self.sara_scope = sara_fraction, sara_threshold, sara_scope
        self.sara_rank_weight, self.sara_rank_convs = sara_rank_weight, sara_rank_convs
        self.sara_progressive, self.sara_reset_moments = sara_progressive, sara_reset_moments
        self.sara_lr_rule = sara_lr_rule
        self.reselection: int | None = None  # optimizer step of the second choice
        self.reselected = False  # whether the second choice has been made
        self.kept: list[tuple[Any, Tensor]] = []  # modules with their values before a step

    # choice

    def score_targets(self) -> list[str]:
        if self.sara_scope == "all":
            return super().score_targets()
        layers = {f"{n}.weight" for n, m in self.backbone.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
        return [name for name in super().score_targets() if name in layers]

    def select(self, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """Entries with |w| below the threshold, and the threshold.

        Raises:
            ValueError: If these are no entries or all entries.
        """
        everything, threshold = torch.cat([score.flatten() for score in scores.values()]), self.sara_threshold
        if threshold is None:  # the smallest |w| beyond the share; equal values are left out too
            threshold = float(everything.kthvalue(int(self.sara_fraction * len(everything)) + 1).values)
        chosen = {n: (s.flatten() < threshold).nonzero().flatten().to(torch.int32) for n, s in scores.items()}
        count = sum(map(len, chosen.values()))
        if count in (0, len(everything)):
            given = f"sara_fraction={self.sara_fraction}" if self.sara_threshold is None else f"sara_{threshold=}"
            raise ValueError(
                f"{given} selects {count} of {len(everything)} weights: their |w| lie between "
                f"{float(everything.min()):.3g} and {float(everything.max()):.3g}; expected some of them and not all"
            )
        return chosen | {"threshold": torch.tensor(threshold, dtype=torch.float64)}

    @property
    def threshold(self) -> float:
        """Threshold of the selection."""
        assert self.selection is not None
        return float(self.selection["threshold"])

    def chosen(self) -> dict[str, Tensor]:
        return {name: indices for name, indices in super().chosen().items() if name != "threshold"}

    # training

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        for entries in self.entries():
            entries.register_buffer("active", torch.ones(len(entries.values), dtype=torch.bool))

    def load_warm_start(self, start: dict[str, Any]) -> None:
        super().load_warm_start(start)
        for entries in self.entries():
            entries.active.fill_(True)

    @property
    def entries_lr(self) -> float:
        return super().entries_lr * (exp(-350 * self.threshold) if self.sara_lr_rule else 1.0)

    def losses(self, outputs: Any, targets: Any) -> dict[str, Tensor]:
        penalty = self.rank_loss() if self.adapted else None
        return super().losses(outputs, targets) | ({} if penalty is None else {"rank_loss": penalty})

    def rank_loss(self) -> Tensor | None:
        """Nuclear norm penalty of one drawn matrix, the same on every rank; the penalty of all would cost more time."""
        paths = [path for path in self.matrices() if self.sara_rank_weight > 0]
        if not paths:
            return None
        entropy = (run_seed(), self.global_step)
        layer: Any = self.backbone.get_submodule(paths[np.random.default_rng(entropy).integers(len(paths))])
        if len(layer.weight_entries.values) <= FEWEST_ENTRIES:
            return None
        return self.sara_rank_weight * self.nuclear_norm(layer.weight_entries, layer._parameters["weight"])

    def matrices(self) -> list[str]:
        """Names of the layers with a penalty."""
        kinds = (nn.Linear, nn.Conv2d) if self.sara_rank_convs else (nn.Linear,)
        layers: dict[str, Any] = {name: m for name, m in self.backbone.named_modules() if isinstance(m, kinds)}
        weights = {name: m._parameters["weight"] for name, m in layers.items() if "weight_entries" in m._modules}
        return [name for name, weight in weights.items() if min(weight.flatten(1).shape) > SMALLEST_SIDE]

    @staticmethod
    def nuclear_norm(entries: Any, weight: Tensor) -> Tensor:
        """Nuclear norm ``||P * M||_*``: sum of the singular values of a matrix of active entries and zeros."""
        matrix = entries.values.new_zeros(weight.numel())
        matrix = matrix.index_copy(0, entries.indices.long(), entries.values * entries.active)
        return torch.linalg.svdvals(matrix.view(len(weight), -1)).sum()

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.sara_progressive is not None:
            self.reselection = int(self.sara_progressive * self.trainer.estimated_stepping_batches)
        self.reselected = any(not entries.active.all() for entries in self.entries())

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make the second choice at its step: trained entries that are still below the threshold stay active."""
        super().on_train_batch_start(batch, batch_idx)
        if self.global_step == self.reselection and not self.reselected:
            for entries in self.entries():
                entries.active.copy_(entries.values.detach().abs() < self.threshold)
                if self.sara_reset_moments:
                    self.trainer.optimizers[0].state.pop(entries.values, None)
            self.reselected = True

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the gradients of stopped entries to zero, before gradient clipping takes their norm."""
        super().on_before_optimizer_step(optimizer)
        for entries in self.entries() if self.reselected else []:
            self.kept.append((entries, entries.values.detach().clone()))
            if entries.values.grad is not None:
                entries.values.grad.mul_(entries.active)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Run the optimizer, then restore stopped entries, because moments and weight decay would change them."""
        super().optimizer_step(*args, **kwargs)
        with torch.no_grad():
            for entries, before in self.kept:
                entries.values.copy_(entries.values.where(entries.active, before))
        self.kept.clear()
