"""Image classification."""

from typing import Any, ClassVar, Literal

import torch
from timm.data import Mixup
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection

from lightning_modules.batch import Batch
from lightning_modules.class_losses import ClassWeights, balanced_weights, check_weights, focal_loss
from lightning_modules.metrics import ClassAccuracy, WeightedMean
from lightning_modules.named_classes import NamedClasses
from lightning_modules.run import datamodule_of
from lightning_modules.task import Headline
from lightning_modules.timm_head import TimmHead

IGNORED = -100  # label of samples that metrics leave out


class MeanCrossEntropy(WeightedMean):
    """Mean cross entropy of logits (B, K) with labels (B,), without samples of the label ``IGNORED``."""

    def update(self, outputs: Tensor, labels: Tensor) -> None:
        losses = F.cross_entropy(outputs, labels, reduction="none", ignore_index=IGNORED)
        super().update(losses, labels != IGNORED)


class Classification(TimmHead, NamedClasses):
    """Image classification with a timm backbone.

    Args:
        num_classes: Number of classes; on the command line it comes from the data.
        loss: Loss of a training step. ``cross_entropy``; or ``focal``: cross entropy of an image times (1 - p) to the
            power ``focal_gamma``, p the probability of its class, so that hard images count more (arXiv:1708.02002).
        focal_gamma: Power of ``focal``; 0 is the cross entropy.
        class_weights: Weight of each class in the training loss, in the order of the classes. ``balanced``: number of
            training images / (number of classes * images of the class).
        label_smoothing: Probability mass that the loss spreads over all classes.
        mixup: Beta parameter of mixup; 0 for no mixup.
        cutmix: Beta parameter of cutmix; 0 for no cutmix. With mixup and cutmix, each batch draws one of them.
    """

    headline = Headline("acc1", higher_is_better=True, label="top-1 (%)", scale=100.0)
    links: ClassVar[dict[str, str]] = {"num_classes": "num_classes"}

    def __init__(
        self,
        num_classes: int = 1000,
        loss: Literal["cross_entropy", "focal"] = "cross_entropy",
        focal_gamma: float = 2.0,
        class_weights: ClassWeights = None,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes}: expected at least 2 classes, of which the data have images")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing}: expected a share of at least 0 and below 1")
        if focal_gamma < 0:
            raise ValueError(f"focal_gamma={focal_gamma}: expected a power of at least 0")
        for name, value in {"mixup": mixup, "cutmix": cutmix}.items():
            if value < 0:
                raise ValueError(f"{name}={value}: expected a positive number, or 0 for none")
        self.num_classes, self.label_smoothing, self.class_weights = num_classes, label_smoothing, class_weights
        self.focal_gamma = focal_gamma if loss == "focal" else 0.0
        check_weights(class_weights, num_classes)
        self.weights = torch.tensor(class_weights, dtype=torch.float32) if isinstance(class_weights, list) else None
        self.mixup = None
        if mixup > 0 or cutmix > 0:
            self.mixup = Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=num_classes)
        self.class_subset: list[int] | None = None  # classes that may be predicted; set by ImageNet-A and ImageNet-R
        self.build()
        self.init_metrics()

    @property
    def outputs(self) -> int:
        return self.num_classes

    @property
    def output_names(self) -> list[str]:
        return self.class_names

    # training

    def augment(self, batch: Batch) -> Batch:
        """Mix images (B, C, H, W) and labels (B,) by mixup or cutmix. The new labels are soft labels (B, K)."""
        if not self.training:
            return batch
        if self.mixup is not None:
            odd = batch.size % 2  # timm mixes image i with image B - 1 - i, which needs an even number: copy one image
            images = torch.cat([batch.inputs, batch.inputs[:odd]])
            labels = torch.cat([batch.targets, batch.targets[:odd]])
            images, labels = self.mixup(images, labels)
            batch = batch._replace(inputs=images[: batch.size], targets=labels[: batch.size])
        data: Any = None if self._trainer is None else datamodule_of(self._trainer)
        return data.after_mixing(batch) if hasattr(data, "after_mixing") else batch

    def losses(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Mean cross entropy or focal loss of logits (B, K) with labels (B,) or soft labels (B, K)."""
        smoothing = 0.0 if targets.dim() > 1 else self.label_smoothing  # soft labels have label smoothing already
        weights = self.loss_weights()
        weights = None if weights is None else weights.to(outputs.device)
        if self.focal_gamma:
            loss = focal_loss(outputs.float(), targets, self.focal_gamma, weights, smoothing)
        else:
            loss = F.cross_entropy(outputs.float(), targets, weights, label_smoothing=smoothing)
        return {"task_loss": loss}

    def loss_weights(self) -> Tensor | None:
        """Weight of each class (K,) in the training loss; None if all are equal.

        Raises:
            ValueError: If they are to be balanced and a class has no training image, or the images cannot be counted.
        """
        if self.weights is None and self.class_weights == "balanced":
            self.weights = balanced_weights(self._trainer and datamodule_of(self._trainer), self.num_classes)
        return self.weights

    def loss_key(self) -> str:
        loss = f" focal_gamma={self.focal_gamma}" if self.focal_gamma else ""
        weights = f" class_weights={self.class_weights}" if self.class_weights else ""
        return f"label_smoothing={self.label_smoothing}{loss}{weights}"

    # evaluation

    def metrics(self) -> MetricCollection:
        metrics: dict[str, Metric | MetricCollection] = {"acc1": ClassAccuracy(self.num_classes, IGNORED)}
        if self.num_classes > 5:
            metrics["acc5"] = ClassAccuracy(self.num_classes, IGNORED, top_k=5)
        metrics["mean_class_acc"] = ClassAccuracy(self.num_classes, IGNORED, average="macro")
        metrics["loss"] = MeanCrossEntropy()
        return MetricCollection(metrics, compute_groups=False)  # finding groups makes a GPU wait

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        """Add logits (B, K) to metrics."""
        metrics.update(self.masked(outputs.float()), batch.targets.masked_fill(~batch.valid, IGNORED))

    def masked(self, logits: Tensor) -> Tensor:
        """Logits (B, K) with minus infinity for classes outside ``class_subset``."""
        if self.class_subset is None:
            return logits
        some = torch.tensor(self.class_subset, device=logits.device)
        return torch.full_like(logits, -torch.inf).index_copy(1, some, logits[:, some])

    def predictions(self, outputs: Tensor) -> Tensor:
        """Class probabilities (B, num_classes)."""
        return self.masked(outputs.float()).softmax(dim=1)

    # data

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.class_subset = getattr(datamodule_of(self.trainer), "class_subset", None)
        if stage == "fit":
            self.loss_weights()  # here, because a class without images is refused before training

    def example_batch(self) -> Batch:
        """One image of zeros (1, C, H, W) of class 0."""
        images = self.example_images()
        return Batch.of(images, torch.zeros(1, dtype=torch.long, device=images.device))
