"""Classification of texts."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryF1Score, MulticlassMatthewsCorrCoef

from backbones.transformers_models import head_names, reset_heads
from lightning_modules.batch import Batch
from lightning_modules.class_losses import ClassWeights, balanced_weights, check_weights
from lightning_modules.classification import IGNORED, MeanCrossEntropy
from lightning_modules.metrics import ClassAccuracy
from lightning_modules.named_classes import NamedClasses
from lightning_modules.run import datamodule_of
from lightning_modules.task import Headline
from lightning_modules.text_task import TextTask

HEADLINES = {
    headline.name: headline
    for headline in (
        Headline("accuracy", higher_is_better=True, label="accuracy (%)", scale=100.0),
        Headline("F1", higher_is_better=True, label="F1 (%)", scale=100.0),
        Headline("matthews", higher_is_better=True, label="Matthews correlation (%)", scale=100.0),
    )
}


class SecondClassF1(BinaryF1Score):
    """F1 of the second of two classes, from logits (B, 2) and labels (B,)."""

    def update(self, outputs: Tensor, labels: Tensor) -> None:
        super().update(outputs.argmax(1), labels)


class TextClassification(TextTask, NamedClasses):
    """Classification of texts with an encoder or a causal model of transformers, under its own new head.

    Args:
        num_classes: Number of classes; on the command line it comes from the data.
        judged_by: Metric that chooses the best epoch and is reported. ``accuracy``: share of right texts. ``F1``: of
            the second of two classes, as GLUE reports MRPC and QQP. ``matthews``: Matthews correlation, as of CoLA.
        class_weights: Weight of each class in the training loss, in the order of the classes. ``balanced``: number of
            training texts / (number of classes * texts of the class).
        label_smoothing: Probability mass that the loss spreads over all classes.
    """

    kind = "sequence_classification"
    headline = HEADLINES["accuracy"]
    links: ClassVar[dict[str, str]] = {"num_classes": "num_classes"}

    def __init__(
        self,
        num_classes: int = 2,
        judged_by: Literal["accuracy", "F1", "matthews"] = "accuracy",
        class_weights: ClassWeights = None,
        label_smoothing: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes}: expected at least 2 classes, of which the data have texts")
        if judged_by == "F1" and num_classes != 2:
            raise ValueError(f"judged_by='F1': expected 2 classes and not {num_classes}; pass accuracy or matthews")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing}: expected a share of at least 0 and below 1")
        check_weights(class_weights, num_classes)
        self.headline = HEADLINES[judged_by]
        self.num_classes, self.label_smoothing, self.class_weights = num_classes, label_smoothing, class_weights
        self.weights = torch.tensor(class_weights, dtype=torch.float32) if isinstance(class_weights, list) else None
        self.build()
        self.init_metrics()

    def build(self) -> None:
        """Build a new plain model with a fresh head."""
        self.backbone_args["num_labels"] = self.num_classes
        super().build()
        reset_heads(self.backbone)

    def heads(self) -> dict[str, nn.Module]:
        return {f"backbone.{name}": self.backbone.get_submodule(name) for name in head_names(self.backbone)}

    # training

    def losses(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Mean cross entropy of logits (B, K) with labels (B,)."""
        weights = self.loss_weights()
        weights = None if weights is None else weights.to(outputs.device)
        loss = F.cross_entropy(outputs.float(), targets, weights, label_smoothing=self.label_smoothing)
        return {"task_loss": loss}

    def loss_weights(self) -> Tensor | None:
        """Weight of each class (K,) in the training loss; None if all are equal.

        Raises:
            ValueError: If they are to be balanced and a class has no training text, or the texts cannot be counted.
        """
        if self.weights is None and self.class_weights == "balanced":
            self.weights = balanced_weights(self._trainer and datamodule_of(self._trainer), self.num_classes)
        return self.weights

    def loss_key(self) -> str:
        weights = f" class_weights={self.class_weights}" if self.class_weights else ""
        return f"label_smoothing={self.label_smoothing}{weights}"

    # evaluation

    def metrics(self) -> MetricCollection:
        metrics: dict[str, Metric | MetricCollection] = {
            "accuracy": ClassAccuracy(self.num_classes, IGNORED),
            "mean_class_acc": ClassAccuracy(self.num_classes, IGNORED, average="macro"),
            "matthews": MulticlassMatthewsCorrCoef(self.num_classes, ignore_index=IGNORED, validate_args=False),
            "loss": MeanCrossEntropy(),
        }
        if self.num_classes == 2:
            metrics["F1"] = SecondClassF1(ignore_index=IGNORED, validate_args=False)
        return MetricCollection(metrics, compute_groups=False)  # finding groups makes a GPU wait

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        """Add logits (B, K) to metrics."""
        metrics.update(outputs.float(), batch.targets.masked_fill(~batch.valid, IGNORED))

    def predictions(self, outputs: Tensor) -> Tensor:
        """Class probabilities (B, num_classes)."""
        return outputs.float().softmax(dim=1)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            self.loss_weights()  # here, because a class without texts is refused before training

    def example_batch(self) -> Batch:
        """One text (1, N) of class 0."""
        inputs = self.example_inputs()
        return Batch.of(inputs, torch.zeros(1, dtype=torch.long, device=inputs["input_ids"].device))
