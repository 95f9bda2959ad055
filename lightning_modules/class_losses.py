"""Losses of classes that are rare or hard: weights of classes, and the focal loss."""

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

ClassWeights = list[float] | Literal["balanced"] | None


def check_weights(weights: ClassWeights, num_classes: int) -> None:
    """Refuse weights that do not fit the classes.

    Raises:
        ValueError: With their number, or the first that is no weight.
    """
    if weights is None or weights == "balanced":
        return
    if len(weights) != num_classes:
        raise ValueError(f"class_weights has {len(weights)} weights; expected {num_classes}, one for each class")
    wrong = [weight for weight in weights if not 0 <= float(weight) < math.inf]
    if wrong or not any(weights):
        raise ValueError(f"class_weights: {wrong[0] if wrong else 'all are 0'}; expected weights of at least 0")


def balanced_weights(data: Any, num_classes: int) -> Tensor:
    """Weights N / (K n) of classes (K,), for n of N training images of a class.

    Args:
        data: Datamodule after its setup.
        num_classes: Number of classes K.

    Raises:
        ValueError: If the images of the classes cannot be counted, or a class has none.
    """
    labels = getattr(getattr(getattr(data, "splits", {}).get("train"), "samples", None), "labels", None)
    if labels is None:
        raise ValueError("class_weights=balanced: no training images whose classes can be counted; pass the weights")
    counts = class_counts(labels, num_classes, list(getattr(data, "class_names", [])), "class_weights=balanced")
    return counts.sum() / (num_classes * counts.float())


def class_counts(labels: Tensor, num_classes: int, names: list[str], option: str) -> Tensor:
    """Number of images of each class (K,).

    Args:
        labels: Class of each image (N,).
        num_classes: Number of classes K.
        names: Names of the classes, for the message; or none.
        option: Option that needs an image of each class, with its value.

    Raises:
        ValueError: If a class has no image, with the names.
    """
    counts = labels.bincount(minlength=num_classes)
    empty = [names[i] if names else str(i) for i in (counts == 0).nonzero().flatten().tolist()]
    if empty:
        raise ValueError(
            f"{option}: {len(empty)} of {num_classes} classes have no training image, first {empty[0]!r}; add images, "
            "take the class out, or leave the option out"
        )
    return counts


def focal_loss(logits: Tensor, targets: Tensor, gamma: float, weights: Tensor | None, smoothing: float) -> Tensor:
    """Mean focal loss ``-w (1 - p)^gamma log p`` of logits (B, K), Lin et al., ICCV 2017, arXiv:1708.02002.

    As for the cross entropy, the mean is weighted by w for labels (B,), and not for soft labels (B, K).

    Args:
        logits: Logits (B, K).
        targets: Labels (B,) or soft labels (B, K).
        gamma: Power of the factor.
        weights: Weight w of each class (K,); None for 1.
        smoothing: Probability mass of each label that is spread over all classes.
    """
    classes = logits.shape[1]
    soft = targets if targets.dim() > 1 else F.one_hot(targets, classes).to(logits.dtype)
    soft = soft * (1 - smoothing) + smoothing / classes
    scale = torch.ones(classes, device=logits.device) if weights is None else weights
    logs = logits.log_softmax(1)
    losses = -(scale * soft * (1 - logs.exp()).pow(gamma) * logs).sum(1)
    return losses.mean() if targets.dim() > 1 else losses.sum() / scale[targets].sum()
