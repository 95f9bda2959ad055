"""Scorers: sums of scores of weights and channels over batches, in pure torch without Lightning.

Each score is a plain sum over batches in fp32, so that several ranks can each sum a part of the batches.
"""

import difflib
from abc import abstractmethod
from collections.abc import Iterable
from inspect import ismethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from lightning_modules.seed import run_seed


class Scorer:
    """Sums of scores, which grow while batches pass through a model inside a ``with`` block.

    Args:
        model: The model; it is unchanged after the block.
        targets: Names of the scored parameters, or of modules with scored features.

    Raises:
        ValueError: If a target is unknown, or is named twice.
    """

    unit = "score"  # name of a score, for the colour bar of the picture
    needs_data: bool = True  # False if the sums are complete at the start of the block, without any batch

    def __init__(self, model: nn.Module, targets: list[str]) -> None:
        self.model, self.targets = model, list(targets)
        self.sums: dict[str, Tensor] = {}
        self.hooks: list[Any] = []
        twice = {name for name in targets if self.targets.count(name) > 1}
        if twice or not targets:
            raise ValueError(f"score targets named twice: {', '.join(sorted(twice))}" if twice else "no score targets")
        names = set(self.names())
        unknown = [name for name in targets if name not in names]
        if unknown:
            near = difflib.get_close_matches(unknown[0], names, n=3)
            hint = f" (nearest to {unknown[0]}: {', '.join(near)})" if near else ""
            raise ValueError(f"score targets that the model does not have: {', '.join(unknown[:5])}{hint}")

    @abstractmethod
    def names(self) -> Iterable[str]:
        """All names that can be targets."""

    @abstractmethod
    def __enter__(self) -> "Scorer":
        """Add the hooks to the model."""

    def observe(self, labels: Tensor) -> None:
        """Get the labels (B,) of the next batch."""

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass of the loss of a batch."""
        loss.backward()

    def __exit__(self, *error: Any) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks = []

    def check(self) -> list[str]:
        """Check the finished sums.

        Returns:
            Names of sums that are zero everywhere.

        Raises:
            ValueError: If a sum is not finite, with its name, or all sums are zero.
        """
        for name, total in self.sums.items():
            if not total.isfinite().all():
                raise ValueError(f"the score of {name} holds NaN or infinity: use --score.precision fp32")
        zero = [name for name, total in self.sums.items() if not total.any()]
        if len(zero) == len(self.sums):
            raise ValueError(f"all scores are zero, first {zero[0]}: the loss does not depend on the scored weights")
        return zero


class ParameterScorer(Scorer):
    """Scores of parameters; the targets are names of parameters."""

    def __init__(self, model: nn.Module, targets: list[str]) -> None:
        super().__init__(model, targets)
        self.parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, module in model.named_modules():
            weight = getattr(module, "weight", None)
            if ismethod(weight) or (isinstance(weight, Tensor) and not weight.is_floating_point()):
                raise ValueError(
                    f"{name} is a quantised {type(module).__name__}: packed bytes have no gradient; score the backbone "
                    "before it is quantised"
                )
        first: dict[int, str] = {}
        for name in targets:
            other = first.setdefault(id(self.parameters[name]), name)
            if other != name:
                raise ValueError(f"score targets {other} and {name} are one tensor: name it once")

    def names(self) -> Iterable[str]:
        return [name for name, _ in self.model.named_parameters(remove_duplicate=False)]


class GradientScorer(ParameterScorer):
    """Sums over batches of a function of each parameter's gradient, which ``accumulate`` computes.

    The sums are updated during the backward pass, and each gradient is freed at once, so that only one gradient exists
    at a time. With ``clip``, all gradients of a batch must exist.

    Args:
        model: The model.
        targets: Names of parameters.
        clip: Norm to which the gradient of all parameters is clipped in each batch; None for no clipping.
    """

    def __init__(self, model: nn.Module, targets: list[str], clip: float | None = None) -> None:
        super().__init__(model, targets)
        self.clip = clip
        self.required = {name: p.requires_grad for name, p in self.parameters.items()}

    @staticmethod
    @abstractmethod
    def accumulate(total: Tensor, gradient: Tensor) -> None:
        """Add the contribution of the gradient of a batch to ``total``, in place."""

    def __enter__(self) -> "GradientScorer":
        for parameter in self.parameters.values():
            parameter.requires_grad_(self.clip is not None)
        for name in self.targets:
            parameter = self.parameters[name]
            parameter.requires_grad_(True)
            self.sums[name] = torch.zeros_like(parameter, dtype=torch.float32, memory_format=torch.contiguous_format)
            if self.clip is None:
                self.hooks.append(parameter.register_post_accumulate_grad_hook(self.hook(self.sums[name])))
        return self

    def backward(self, loss: Tensor) -> None:
        super().backward(loss)
        if self.clip is not None:
            clip_grad_norm_(self.model.parameters(), self.clip)
            for name in self.targets:
                gradient = self.parameters[name].grad
                if gradient is not None:
                    self.accumulate(self.sums[name], gradient.float())
            self.model.zero_grad()

    def hook(self, total: Tensor) -> Any:
        def drop(parameter: Tensor) -> None:
            assert parameter.grad is not None
            self.accumulate(total, parameter.grad.float())
            parameter.grad = None

        return drop

    def __exit__(self, *error: Any) -> None:
        super().__exit__()
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(self.required[name])


class SignedGradients(GradientScorer):
    """Sums ``sum_b g_b`` with signs; the selection takes the absolute value (GPS, second-order selection)."""

    unit = "|sum of gradients|"

    @staticmethod
    def accumulate(total: Tensor, gradient: Tensor) -> None:
        total.add_(gradient)


class SquaredGradients(GradientScorer):
    """Sums ``sum_b g_b^2``, with g_b the gradient of the mean loss of a batch (SPT)."""

    unit = "sum of squared gradients"

    @staticmethod
    def accumulate(total: Tensor, gradient: Tensor) -> None:
        total.addcmul_(gradient, gradient)


class AbsoluteGradients(GradientScorer):
    """Sums ``sum_b |g_b|``."""

    unit = "sum of |gradients|"

    @staticmethod
    def accumulate(total: Tensor, gradient: Tensor) -> None:
        total.add_(gradient.abs())


class Curvature(SignedGradients):
    """Sums ``sum_b g_b``, and sums of estimates ``r * (H r)`` of the Hessian's diagonal, r random signs (Hutchinson).

    The sums of the estimates are called ``hessian/<parameter>``; ``count`` is the number of estimates. The loss must
    have second derivatives, which fused attention kernels do not have.

    Args:
        model: The model.
        targets: Names of parameters.
        clip: Norm to which the gradient of a batch is clipped before it is added; None for no clipping.
        probes: Number of vectors r for each batch.
    """

    def __init__(self, model: nn.Module, targets: list[str], clip: float | None = None, probes: int = 10) -> None:
        super().__init__(model, targets, torch.inf if clip is None else clip)
        self.probes = probes

    def __enter__(self) -> "Curvature":
        super().__enter__()
        first = next(iter(self.sums.values()))
        self.sums |= {f"hessian/{name}": torch.zeros_like(self.sums[name]) for name in self.targets}
        self.sums["count"] = torch.zeros(1, device=first.device)
        return self

    def backward(self, loss: Tensor) -> None:
        parameters = [self.parameters[name] for name in self.targets]
        first = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
        for _ in range(self.probes):
            signs = [torch.randint_like(p, 2).mul_(2).sub_(1) for p in parameters]
            products = torch.autograd.grad(first, parameters, signs, retain_graph=True, materialize_grads=True)
            for name, sign, product in zip(self.targets, signs, products, strict=True):
                self.sums[f"hessian/{name}"].addcmul_(sign, product)
        self.sums["count"] += self.probes
        del first, products
        super().backward(loss)


class Magnitudes(ParameterScorer):
    """Magnitudes ``|w|`` of weights; they need no data."""

    unit, needs_data = "|w|", False

    def __enter__(self) -> "Magnitudes":
        self.sums = {name: self.parameters[name].detach().float().abs() for name in self.targets}
        return self


class RandomScores(ParameterScorer):
    """Uniform random numbers in [0, 1) from the seed of the run; they need no data."""

    unit, needs_data = "uniform number", False

    def __enter__(self) -> "RandomScores":
        draw = torch.Generator().manual_seed(run_seed())
        self.sums = {name: torch.rand(self.parameters[name].shape, generator=draw) for name in self.targets}
        return self
