"""Metrics of tags, of which an image has any number."""

from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multilabel_average_precision
from torchmetrics.utilities import dim_zero_cat


class MeanAveragePrecision(Metric):
    """Mean over tags of the average precision of all images; tags that no image has are left out.

    Equal to scikit-learn's ``average_precision_score``, and 0 if no image has a tag. The class of torchmetrics has no
    place for samples that do not count; therefore this one keeps them apart and calls its function.
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
        outputs, tags = dim_zero_cat(self.outputs)[valid].cpu(), dim_zero_cat(self.tags)[valid].cpu().long()
        there = tags.any(0)  # because torchmetrics warns about a tag without an image
        if not there.any():
            return torch.zeros(())
        # in fp64, because torchmetrics takes the sigmoid, which in fp32 is 1 for every logit above 17
        return multilabel_average_precision(
            outputs[:, there].double(), tags[:, there], int(there.sum()), validate_args=False
        ).float()


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
