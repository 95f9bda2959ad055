"""Metrics of numbers, from sums over all images."""

from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric


class NumberScore(Metric):
    """Score of predicted numbers, a mean over the numbers of an image.

    Args:
        score: ``MAE``: mean absolute error. ``RMSE``: root of the mean squared error. ``R2``: 1 - squared errors /
            squared deviations from the mean, at most 1, and 0 for a number that is equal in all images.
        num_targets: Numbers of an image T.
    """

    full_state_update = False
    sums: Tensor

    def __init__(self, score: Literal["MAE", "RMSE", "R2"], num_targets: int) -> None:
        super().__init__()
        self.score = score
        # of each number: images, absolute and squared errors, the number and its square
        self.add_state("sums", torch.zeros(5, num_targets, dtype=torch.double), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, numbers: Tensor, valid: Tensor) -> None:
        """Add predictions and numbers (B, T) of the images that are valid (B,)."""
        there, outputs, numbers = valid[:, None].double(), outputs.double(), numbers.double()
        errors = outputs - numbers
        parts = (torch.ones_like(errors), errors.abs(), errors**2, numbers, numbers**2)
        self.sums += torch.stack([(part * there).sum(0) for part in parts])

    def compute(self) -> Tensor:
        count, absolute, squared, number, square = self.sums
        if self.score == "MAE":
            return (absolute / count).mean().float()
        if self.score == "RMSE":
            return (squared / count).sqrt().mean().float()
        spread = square - number**2 / count
        varies = spread > 1e-12 * square
        return torch.where(varies, 1 - squared / spread.where(varies, 1.0), 0.0).mean().float()
