"""Scores of weights and channels, summed over batches; pure torch, usable without Lightning.

Every score is a plain sum over batches in fp32, so that shares of the batches can be summed on several ranks and added.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class Scorer:
    """Sums that grow while batches pass through a model inside a ``with`` block.

    Args:
        model: The model; nothing of it has changed after the block.
        targets: What is scored; names of parameters, or of modules whose features are.

    Raises:
        ValueError: If a target is unknown, or named twice.
    """

    def __init__(self, model: nn.Module, targets: list[str]) -> None:
        self.model, self.targets = model, list(targets)
        self.sums: dict[str, Tensor] = {}
        self.hooks: list[Any] = []
        twice = {name for name in targets if self.targets.count(name) > 1}
        if twice or not targets:
            raise ValueError(f"score targets named twice: {', '.join(sorted(twice))}" if twice else "no score targets")

    @abstractmethod
    def __enter__(self) -> "Scorer":
        """Install the hooks."""

    def observe(self, labels: Tensor) -> None:
        """Take the labels (B,) of the batch that comes next."""

    def __exit__(self, *error: Any) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks = []

    def check(self) -> None:
        """Look at the finished sums.

        Raises:
            ValueError: If one is not finite, or all of one are zero, by name.
        """
        for name, total in self.sums.items():
            if not total.isfinite().all():
                raise ValueError(f"the score of {name} holds NaN or infinity: lower the precision's risk with fp32")
        zero = [name for name, total in self.sums.items() if not total.any()]
        if len(zero) == len(self.sums):
            raise ValueError(f"all scores are zero, first {zero[0]}: the loss does not depend on the scored weights")


class GradientScorer(Scorer):
    """Sums over batches of what ``accumulate`` makes of each parameter's gradient.

    Sums are made while the backward pass runs, and each gradient is dropped at once: never more than one is alive.
    """

    def __init__(self, model: nn.Module, targets: list[str]) -> None:
        super().__init__(model, targets)
        self.parameters = dict(model.named_parameters())
        unknown = [name for name in targets if name not in self.parameters]
        if unknown:
            raise ValueError(f"score targets that the model does not have: {', '.join(unknown[:5])}")
        for name in targets:
            if not self.parameters[name].is_floating_point():
                raise ValueError(f"{name} is stored as packed bytes, which have no gradient: score another backbone")
        self.required = {name: p.requires_grad for name, p in self.parameters.items()}

    @staticmethod
    @abstractmethod
    def accumulate(total: Tensor, gradient: Tensor) -> None:
        """Add what a batch's gradient contributes, in place."""

    def __enter__(self) -> "GradientScorer":
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(name in self.targets)
        for name in self.targets:
            parameter = self.parameters[name]
            self.sums[name] = torch.zeros_like(parameter, dtype=torch.float32, memory_format=torch.contiguous_format)
            self.hooks.append(parameter.register_post_accumulate_grad_hook(self.hook(self.sums[name])))
        return self

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
    """``sum_b g_b``, signs kept: the absolute value is taken by who selects (GPS, second-order selection)."""

    @staticmethod
    def accumulate(total: Tensor, gradient: Tensor) -> None:
        total.add_(gradient)


class SquaredGradients(GradientScorer):
    """``sum_b g_b^2`` of the gradient of the mean loss of each batch (SPT)."""

    @staticmethod
    def accumulate(total: Tensor, gradient: Tensor) -> None:
        total.addcmul_(gradient, gradient)


class AbsoluteGradients(GradientScorer):
    """``sum_b |g_b|``."""

    @staticmethod
    def accumulate(total: Tensor, gradient: Tensor) -> None:
        total.add_(gradient.abs())


class ClassSquares(Scorer):
    """Sums of squares of features per class and channel, ``sums[target]`` (classes, C), and images per class.

    Targets are module names, with ``:input`` behind a name for what goes into the module. Features are (B, N, C) or
    (B, H, W, C); of token sequences the first ``prefix`` tokens are left out.

    Args:
        model: The model.
        targets: Module names.
        num_classes: Number of classes.
        prefix: Number of tokens before the patches.
    """

    def __init__(self, model: nn.Module, targets: list[str], num_classes: int, prefix: int) -> None:
        super().__init__(model, targets)
        self.num_classes, self.prefix = num_classes, prefix
        self.modules = {name: model.get_submodule(name.removesuffix(":input")) for name in targets}
        self.labels: Tensor | None = None

    def __enter__(self) -> "ClassSquares":
        for name, module in self.modules.items():
            if name.endswith(":input"):
                self.hooks.append(module.register_forward_pre_hook(lambda m, args, name=name: self.add(name, args[0])))
            else:
                self.hooks.append(module.register_forward_hook(lambda m, args, out, name=name: self.add(name, out)))
        return self

    def observe(self, labels: Tensor) -> None:
        if labels.dim() != 1 or labels.is_floating_point():
            raise ValueError(f"class-aware scores need one class per image, got labels of shape {tuple(labels.shape)}")
        self.labels = labels
        counts = self.sums.setdefault("images", torch.zeros(self.num_classes, device=labels.device))
        counts += labels.bincount(minlength=self.num_classes)

    def add(self, name: str, feature: Tensor) -> None:
        assert self.labels is not None, "observe the labels of a batch before it passes"
        tokens = feature[:, self.prefix :] if feature.dim() == 3 else feature.flatten(1, 2)
        squares = tokens.detach().float().square().sum(1)  # (B, C)
        zeros = torch.zeros(self.num_classes, squares.shape[1], device=squares.device)
        self.sums.setdefault(name, zeros).index_add_(0, self.labels, squares)
