"""Metrics of tags, of which an image has any number."""

from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class MeanAveragePrecision(Metric):
    """Mean over tags of the average precision of all images; tags that no image has are left out.

    Equal to scikit-learn's ``average_precision_score``, and 0 if no image has a tag.
    """

    full_state_update = False
    outputs: list[Tensor]
    tags: list[Tensor]
    valid: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("outputs", "tags", "valid"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, outputs: Tensor, tags: Tensor, valid: Tensor) -> None:
        """Add logits (B, K) and tags (B, K), 0 or 1, of the images that are valid (B,)."""
        self.outputs.append(outputs)
        self.tags.append(tags)
        self.valid.append(valid)

    def compute(self) -> Tensor:
        valid = dim_zero_cat(self.valid)
        outputs, tags = dim_zero_cat(self.outputs)[valid], dim_zero_cat(self.tags)[valid]
        columns = [k for k in range(tags.shape[1]) if tags[:, k].any()]
        found = [average_precision(outputs[:, k], tags[:, k]) for k in columns]
        return torch.stack(found).mean() if found else outputs.new_zeros(())


def average_precision(scores: Tensor, hits: Tensor) -> Tensor:
    """Sum of precisions at the distinct scores, each times the recall that it adds.

    Args:
        scores: Scores (N,).
        hits: Whether each sample is positive (N,), 0 or 1; at least one is.
    """
    scores, order = scores.sort(descending=True, stable=True)
    found = hits[order].double().cumsum(0)
    last = torch.cat([scores[1:] != scores[:-1], scores.new_ones(1, dtype=torch.bool)])  # of equal scores
    places = last.nonzero().flatten()
    precision, recall = found[places] / (places + 1), found[places] / found[-1]
    return (precision * recall.diff(prepend=recall.new_zeros(1))).sum().float()


class TagF1(Metric):
    """F1 of tags, of which an image has those with a probability above 0.5.

    Args:
        num_classes: Number of tags K.
        average: ``micro``: of all tags and images together. ``macro``: mean over the tags that an image or a prediction
            has.
    """

    full_state_update = False
    hits: Tensor
    named: Tensor

    def __init__(self, num_classes: int, average: Literal["micro", "macro"]) -> None:
        super().__init__()
        self.average = average
        for name in ("hits", "named"):  # of each tag: right predictions, and images plus predictions with it
            self.add_state(name, torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, tags: Tensor, valid: Tensor) -> None:
        """Add logits (B, K) and tags (B, K), 0 or 1, of the images that are valid (B,)."""
        there = valid[:, None].long()
        predicted, real = (outputs > 0).long() * there, tags.long() * there
        self.hits += (predicted * real).sum(0)
        self.named += (predicted + real).sum(0)

    def compute(self) -> Tensor:
        if self.average == "micro":
            return 2 * self.hits.sum() / self.named.sum().clamp(min=1)
        scores = 2 * self.hits / self.named.clamp(min=1)
        return scores.sum() / (self.named > 0).sum().clamp(min=1)
