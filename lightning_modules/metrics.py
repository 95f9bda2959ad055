"""Metrics of evaluation for which a GPU never waits during an epoch.

Those of torchmetrics select valid samples by a mask and look for NaN, so that the host waits several times a batch.
"""

from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric


class WeightedMean(Metric):
    """Mean of values, each with a weight. Unlike torchmetrics' mean it does not leave out NaN."""

    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, values: Tensor, weights: Tensor) -> None:
        """Add values of any shape, and weights that can be expanded to it; a value of weight 0 is left out."""
        weights = weights.to(self.weight.dtype).expand_as(values)
        self.total += (values * weights).masked_fill(weights == 0, 0).sum()
        self.weight += weights.sum()

    def compute(self) -> Tensor:
        return self.total / self.weight


class ClassAccuracy(Metric):
    """Share of samples whose class is among the k largest outputs; equal to torchmetrics' ``MulticlassAccuracy``.

    Args:
        num_classes: Number of classes K.
        ignored: Label of samples that are left out.
        average: ``micro``: over all samples. ``macro``: mean over the classes that a label or a prediction names.
        top_k: Number k of outputs.
    """

    full_state_update = False
    hits: Tensor
    labels: Tensor
    named: Tensor

    def __init__(
        self, num_classes: int, ignored: int, average: Literal["micro", "macro"] = "micro", top_k: int = 1
    ) -> None:
        super().__init__()
        self.ignored, self.average, self.top_k = ignored, average, top_k
        for name in ("hits", "labels", "named"):  # samples of each class: recognised, all, labelled or predicted
            self.add_state(name, torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, labels: Tensor) -> None:
        """Add outputs (B, K) with labels (B,)."""
        # argmax and not topk for one output, because topk takes any of equal outputs and argmax the first one
        first = outputs.argmax(1, keepdim=True)
        found = first if self.top_k == 1 else outputs.topk(self.top_k, dim=1).indices
        valid = labels != self.ignored
        places = labels.masked_fill(~valid, 0)
        hits = (found == labels[:, None]).any(1)
        self.hits.index_add_(0, places, hits.long())
        self.labels.index_add_(0, places, valid.long())
        self.named.index_add_(0, places, valid.long()).index_add_(0, first.flatten(), valid.long())

    def compute(self) -> Tensor:
        if self.average == "micro":
            return self.hits.sum() / self.labels.sum()
        present = (self.named > 0).float()
        return (self.hits / self.labels.clamp(min=1) * present).sum() / present.sum()


class ConfusionShare(Metric):
    """Share of right pixels, from the confusion counts of all images.

    The counts are those of the whole split, because the mean over images of such a share is another number.

    Args:
        share: ``iou``: intersection over union, mean over the classes that a label or a prediction names.
            ``accuracy``: share of the pixels of a class, mean over the classes that a label names. ``pixels``: share of
            all pixels.
        num_classes: Number of classes K.
        ignored: Label of pixels that are left out.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, share: Literal["iou", "accuracy", "pixels"], num_classes: int, ignored: int) -> None:
        super().__init__()
        self.share, self.num_classes, self.ignored = share, num_classes, ignored
        # of label i and prediction j at i * K + j
        self.add_state("counts", torch.zeros(num_classes**2, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, labels: Tensor) -> None:
        """Add outputs (B, K, ...) with labels (B, ...)."""
        valid = labels != self.ignored
        # not bincount and not a mask, for which a GPU waits
        places = labels.masked_fill(~valid, 0) * self.num_classes + outputs.argmax(1)
        self.counts.index_add_(0, places.flatten(), valid.flatten().long())

    def per_class(self) -> Tensor:
        """Share of each class (K,); not a number for classes that are left out of the mean."""
        counts = self.counts.view(self.num_classes, self.num_classes).double()
        hits, labels, predictions = counts.diagonal(), counts.sum(1), counts.sum(0)
        return hits / (labels + predictions - hits if self.share == "iou" else labels)

    def compute(self) -> Tensor:
        if self.share == "pixels":
            counts = self.counts.view(self.num_classes, self.num_classes)
            return (counts.diagonal().sum() / counts.sum()).float()
        return self.per_class().nanmean().float()


def foreground(outputs: Tensor) -> Tensor:
    """Whether pixels (B, H, W) are foreground by logits (B, 1, H, W): shares above 128/255, as in the code of GPS."""
    return outputs[:, 0].sigmoid() > 128 / 255


class ForegroundShare(Metric):
    """Agreement of the predicted foreground with the labelled one, for two classes; 1 is the foreground.

    With TP pixels that are both, FP that are only predicted and FN that are only labelled:

    Args:
        share: ``dice``: ``2 TP / (2 TP + FP + FN)``. ``iou``: ``TP / (TP + FP + FN)``. ``recall``: R = ``TP / (TP +
            FN)``, which is the mIoU of a code that ignores all background pixels. ``recall_dice``: ``2 R / (1 + R)``,
            its mDice. The last two are 1 if all is predicted as foreground.
        per_image: Whether to average over images, which is only for ``dice`` and ``iou``; otherwise the counts of all
            images give one share. An image without any foreground counts 1 if none is predicted.
    """

    full_state_update = False
    counts: Tensor
    sums: Tensor

    def __init__(self, share: Literal["dice", "iou", "recall", "recall_dice"], per_image: bool = False) -> None:
        super().__init__()
        self.share, self.per_image = share, per_image
        self.add_state("counts", torch.zeros(3, dtype=torch.long), dist_reduce_fx="sum")  # TP, FP, FN
        self.add_state("sums", torch.zeros(3, dtype=torch.double), dist_reduce_fx="sum")  # images, Dice and IoU of them

    def update(self, outputs: Tensor, labels: Tensor) -> None:
        """Add logits (B, 1, H, W) with labels (B, H, W); pixels of labels other than 0 and 1 are left out."""
        labelled, valid = labels == 1, (labels == 0) | (labels == 1)
        predicted = foreground(outputs)
        parts = predicted & labelled, predicted & valid & ~labelled, labelled & ~predicted
        counts = torch.stack([part.flatten(1).sum(1) for part in parts])  # (3, B)
        self.counts += counts.sum(1)
        hits, wrong = counts[0].double(), counts[1:].sum(0).double()
        seen = valid.flatten(1).any(1)
        shares = [torch.where(hits + wrong > 0, n * hits / (n * hits + wrong), 1) for n in (2, 1)]
        self.sums += torch.stack([seen.sum(), *((share * seen).sum() for share in shares)])

    def compute(self) -> Tensor:
        if self.per_image:
            return (self.sums[1 if self.share == "dice" else 2] / self.sums[0]).float()
        hits, over, missed = self.counts.double()
        if self.share.startswith("recall"):
            recall = hits / (hits + missed)
            return (recall if self.share == "recall" else 2 * recall / (1 + recall)).float()
        twice = 2 if self.share == "dice" else 1
        return (twice * hits / (twice * hits + over + missed)).float()
