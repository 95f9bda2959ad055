"""Image classification where an image has any number of classes, its tags."""

from typing import Any, ClassVar, Literal

import torch
from timm.loss import AsymmetricLossMultiLabel
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection

from lightning_modules.batch import Batch
from lightning_modules.named_classes import NamedClasses
from lightning_modules.tag_metrics import MeanAveragePrecision, TagF1
from lightning_modules.task import Headline
from lightning_modules.timm_head import TimmHead


class MultiLabel(TimmHead, NamedClasses):
    """Multi-label image classification with a timm backbone.

    Args:
        num_classes: Number of tags; on the command line it comes from the data.
        loss: Loss of a training step, a mean over tags and images. ``bce``: binary cross entropy. ``asymmetric``: the
            same with factors that leave out easy negatives (arXiv:2009.14119), for many tags of which an image has few.
        gamma_positive: Power of ``asymmetric`` for tags that an image has.
        gamma_negative: Power of ``asymmetric`` for tags that it has not.
        probability_margin: Probability below which a tag that an image has not is left out by ``asymmetric``.
    """

    headline = Headline("mAP", higher_is_better=True, label="mAP (%)", scale=100.0)
    links: ClassVar[dict[str, str]] = {"num_classes": "num_classes"}
    targets = "tags"

    def __init__(
        self,
        num_classes: int = 1,
        loss: Literal["bce", "asymmetric"] = "bce",
        gamma_positive: float = 1.0,
        gamma_negative: float = 4.0,
        probability_margin: float = 0.05,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes}: expected at least 1 tag")
        if min(gamma_positive, gamma_negative) < 0 or not 0 <= probability_margin < 1:
            raise ValueError(
                f"gamma_positive={gamma_positive}, gamma_negative={gamma_negative}, probability_margin="
                f"{probability_margin}: expected powers of at least 0, and a probability of at least 0 and below 1"
            )
        self.num_classes, self.loss_name = num_classes, loss
        self.asymmetric = AsymmetricLossMultiLabel(gamma_negative, gamma_positive, probability_margin, reduction="mean")
        self.loss_settings = f"{loss} {gamma_positive} {gamma_negative} {probability_margin}"
        self.build()
        self.init_metrics()

    @property
    def outputs(self) -> int:
        return self.num_classes

    @property
    def output_names(self) -> list[str]:
        return self.class_names

    def losses(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Mean loss of logits (B, K) with tags (B, K), 0 or 1."""
        if self.loss_name == "asymmetric":
            return {"task_loss": self.asymmetric(outputs, targets)}
        return {"task_loss": F.binary_cross_entropy_with_logits(outputs.float(), targets)}

    def loss_key(self) -> str:
        return self.loss_settings if self.loss_name == "asymmetric" else self.loss_name

    def metrics(self) -> MetricCollection:
        return MetricCollection(
            {
                "mAP": MeanAveragePrecision(),
                "F1_micro": TagF1(self.num_classes, "micro"),
                "F1_macro": TagF1(self.num_classes, "macro"),
            },
            compute_groups=False,
        )

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        """Add logits (B, K) to metrics."""
        metrics.update(outputs.float(), batch.targets, batch.valid)

    def predictions(self, outputs: Tensor) -> Tensor:
        """Probability of each tag (B, K)."""
        return outputs.float().sigmoid()

    def example_batch(self) -> Batch:
        """One image of zeros (1, C, H, W) with all tags."""
        images = self.example_images()
        return Batch.of(images, torch.ones(1, self.num_classes, device=images.device))
