"""Scores of channels, summed for each class."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from callbacks.scoring.scorers import Scorer


class ClassSquares(Scorer):
    """Sums of squares of features per class and channel, ``sums[target]`` (classes, C), and images per class.

    A target is the name of a module, for its output, or ``<name>:input`` for its input. Features are (B, N, C) without
    their first ``prefix`` tokens, or (B, H, W, C).

    Args:
        model: The model.
        targets: Module names.
        num_classes: Number of classes.
        prefix: Number of tokens before the patches.
    """

    unit = "importance"

    def __init__(self, model: nn.Module, targets: list[str], num_classes: int, prefix: int) -> None:
        super().__init__(model, targets)
        self.num_classes, self.prefix = num_classes, prefix
        self.modules = {name: model.get_submodule(name.removesuffix(":input")) for name in targets}
        self.labels: Tensor | None = None

    def names(self) -> Iterable[str]:
        return [name + end for name, _ in self.model.named_modules() for end in ("", ":input")]

    def __enter__(self) -> "ClassSquares":
        for name, module in self.modules.items():
            if name.endswith(":input"):
                self.hooks.append(module.register_forward_pre_hook(lambda m, args, name=name: self.add(name, args[0])))
            else:
                self.hooks.append(module.register_forward_hook(lambda m, args, out, name=name: self.add(name, out)))
        return self

    def observe(self, labels: Tensor) -> None:
        check_classes(labels)
        self.labels = labels
        counts = self.sums.setdefault("images", torch.zeros(self.num_classes, device=labels.device))
        counts += labels.bincount(minlength=self.num_classes)

    def add(self, name: str, feature: Tensor) -> None:
        assert self.labels is not None, "observe the labels of a batch before it passes"
        tokens = feature[:, self.prefix :] if feature.dim() == 3 else feature.flatten(1, 2)
        squares = tokens.detach().float().square().sum(1)
        squares = squares.unflatten(0, (len(self.labels), -1)).sum(1)  # (B, C); the frames of a clip are several rows
        zeros = torch.zeros(self.num_classes, squares.shape[1], device=squares.device)
        self.sums.setdefault(name, zeros).index_add_(0, self.labels, squares)


def check_classes(labels: Tensor) -> None:
    """Refuse labels that are not one class per image.

    Raises:
        ValueError: With dtype and shape of the labels.
    """
    if labels.dim() != 1 or labels.is_floating_point():
        kind = str(labels.dtype).removeprefix("torch.")
        raise ValueError(f"expected one class per image (B,), got {kind} labels of shape {tuple(labels.shape)}")
