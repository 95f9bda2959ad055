"""Parameter-Efficient Transfer Learning with Diff Pruning (arXiv:2012.07463).

``W = W0 + z * w`` with trained gates z in [0, 1]; most gates become 0.
"""

from typing import Any

import torch
from torch import Tensor, nn

from backbones.anatomy import replaceable
from backbones.inject import Backbone, merge_parametrized, parametrize_in_place
from callbacks.scoring.top import top
from methods.core.base import PEFTMethod
from methods.layers.operation import Operation

SURE = 1e4  # |alpha| of a gate that is open or shut for every draw of u and has no gradient


def hard_concrete(logits: Tensor, stretch: float) -> Tensor:
    """Gates z (n,) from the logits of the sigmoid."""
    return ((2 * torch.sigmoid(logits) - 1) * stretch).clamp(0, 1)


class GatedDifference(Operation):
    """``z * w`` in the dtype of W0; keeps z alone for the backward pass, in that dtype.

    The sigmoid is s = (z / stretch + 1) / 2, so that dz / dalpha = 2 stretch s (1 - s) for 0 < z < 1.
    """

    @staticmethod
    def forward(
        ctx: Any, difference: Tensor, alpha: Tensor, noise: Tensor | None, stretch: float, dtype: torch.dtype
    ) -> Tensor:
        gates = hard_concrete(alpha if noise is None else alpha + noise, stretch).view_as(difference)
        ctx.save_for_backward(difference, gates.to(dtype))
        ctx.stretch = stretch
        return (gates * difference).to(dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        difference, gates = ctx.saved_tensors
        g, gates = g.to(difference.dtype), gates.to(difference.dtype)
        s = (gates / ctx.stretch + 1) / 2
        slope = (2 * ctx.stretch * s * (1 - s)).masked_fill((gates <= 0) | (gates >= 1), 0)
        return g * gates, (g * difference * slope).flatten(), None, None, None


class SumOfSigmoids(Operation):
    """``sum sigmoid(alpha)``; keeps alpha alone, a parameter, for the backward pass."""

    @staticmethod
    def forward(ctx: Any, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(alpha)
        return alpha.sigmoid().sum()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (alpha,) = ctx.saved_tensors
        s = alpha.sigmoid()
        return g * s * (1 - s)


class Diff(nn.Module):
    """``W0 + z * w`` with hard concrete gates z: ``clamp(stretch(sigmoid(logit u + alpha)), 0, 1)``, u uniform.

    Args:
        parameter: The pretrained W0.
        alpha: Initial alpha.
        stretch: The sigmoid is stretched to (-stretch, stretch).
    """

    def __init__(self, parameter: Tensor, alpha: float, stretch: float) -> None:
        super().__init__()
        self.difference = nn.Parameter(torch.zeros_like(parameter, dtype=torch.float32))
        self.alpha = nn.Parameter(torch.full((parameter.numel(),), float(alpha)))
        self.stretch = stretch

    def forward(self, parameter: Tensor) -> Tensor:
        noise = self.noise() if self.training else None
        return parameter + GatedDifference.apply(self.difference, self.alpha, noise, self.stretch, parameter.dtype)

    def noise(self) -> Tensor:
        """``logit u`` (n,) for each gate."""
        u = torch.empty_like(self.alpha).uniform_(1e-6, 1 - 1e-6)
        return u.log() - (1 - u).log()

    def gates(self) -> Tensor:
        """Gates z (n,). An evaluation adds no noise."""
        return hard_concrete(self.alpha + self.noise() if self.training else self.alpha, self.stretch)

    @torch.no_grad()
    def prune(self, count: int) -> None:
        """Open the ``count`` gates with the largest |alpha| and shut the others, both for the rest of the training."""
        kept = top(self.alpha.abs(), count)
        self.alpha.fill_(-SURE).index_fill_(0, kept, SURE)


class DiffPruning(PEFTMethod):
    """Diff pruning (Guo et al., ACL 2021, arXiv:2012.07463).

    Two numbers train for each parameter of the backbone, and the checkpoint holds both. The merged model differs from
    the pretrained model in the share ``diff_fraction`` of its parameters.

    Args:
        diff_fraction: Share of each tensor that differs at the end: the entries with the largest |alpha|, as in the
            code of Fu et al.
        diff_burn_in: Share of the training after which the other differences are set to zero.
        diff_l0_weight: Weight of the expected number of differences in the loss.
        diff_alpha_init: Initial alpha of the gates.
        diff_alpha_lr: Peak learning rate of alpha; the differences train with ``lr``.
        diff_stretch: The sigmoid of a gate is stretched to (-stretch, stretch); 1.5 in the paper, 3 in the code of Fu
            et al.
    """

    scales_over_widths = False

    def __init__(
        self,
        diff_fraction: float = 0.005,
        diff_burn_in: float = 0.5,
        diff_l0_weight: float = 1.25e-7,
        diff_alpha_init: float = 5.0,
        diff_alpha_lr: float = 0.1,
        diff_stretch: float = 1.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, share in {"fraction": diff_fraction, "burn_in": diff_burn_in}.items():
            if not 0 < share < 1:
                raise ValueError(f"diff_{name}={share}: expected a share above 0 and below 1")
        if diff_stretch <= 1:
            raise ValueError(f"diff_stretch={diff_stretch}: expected more than 1, or no gate could open fully")
        if diff_l0_weight < 0 or diff_alpha_lr <= 0:
            raise ValueError(f"{diff_l0_weight=}, {diff_alpha_lr=}: expected 0 or more, and a positive learning rate")
        self.diff_fraction, self.diff_burn_in, self.diff_l0_weight = diff_fraction, diff_burn_in, diff_l0_weight
        self.diff_alpha_init, self.diff_alpha_lr, self.diff_stretch = diff_alpha_init, diff_alpha_lr, diff_stretch
        self.pruning: int | None = None  # optimizer step at which the gates are fixed

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        heads = self.head_prefixes
        for name in replaceable(backbone, self.used_names()):
            if not f"backbone.{name}".startswith(heads):
                path, _, kind = name.rpartition(".")
                op = Diff(backbone.get_parameter(name), self.diff_alpha_init, self.diff_stretch)
                parametrize_in_place(backbone.get_submodule(path), kind, f"{kind}_diff", op)

    def diffs(self) -> list[Diff]:
        return [module for module in self.backbone.modules() if isinstance(module, Diff)]

    def param_groups(self) -> list[dict[str, Any]]:
        alphas = [diff.alpha for diff in self.diffs()]
        own = {id(alpha) for alpha in alphas}
        groups = super().param_groups()
        groups = [{**group, "params": [p for p in group["params"] if id(p) not in own]} for group in groups]
        groups.append({"params": alphas, "weight_decay": 0.0, "lr": self.diff_alpha_lr})
        return [group for group in groups if group["params"]]

    def losses(self, outputs: Any, targets: Any) -> dict[str, Tensor]:
        return super().losses(outputs, targets) | ({"l0_loss": self.l0_loss()} if self.adapted else {})

    def l0_loss(self) -> Tensor:
        """Weight times the expected number of open gates, ``sum sigmoid(alpha)`` for a symmetric stretch."""
        return self.diff_l0_weight * torch.stack([SumOfSigmoids.apply(diff.alpha) for diff in self.diffs()]).sum()

    def on_train_start(self) -> None:
        super().on_train_start()
        self.pruning = int(self.diff_burn_in * self.trainer.estimated_stepping_batches)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        if self.global_step == self.pruning:
            for diff in self.diffs():
                if diff.alpha.abs().max() < SURE / 2:  # False if an earlier part of this run has pruned already
                    diff.prune(int(self.diff_fraction * diff.alpha.numel()))

    def merge_into(self, backbone: Backbone) -> None:
        merge_parametrized(backbone)
        super().merge_into(backbone)
