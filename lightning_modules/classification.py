"""Image classification."""

from typing import Any, Literal

import torch
from timm.data import Mixup
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lightning_modules.backbone import build_backbone, head_modules, input_config, reset_head
from lightning_modules.base import TaskModule

PADDING = -100  # label of the samples that only fill the last batch of a rank


class Classification(TaskModule):
    """Image classification with a timm backbone.

    Args:
        backbone: Full timm tag such as ``vit_base_patch16_224.augreg_in21k``, or ``local-dir:PATH``.
        pretrained: ``true`` for the weights of the tag, ``false`` for random ones, or the path of a weight file.
        num_classes: Number of classes; on the command line the data say it.
        backbone_args: Further arguments of ``timm.create_model``.
        drop_path: Stochastic depth rate of the last block (linear over depth).
        head_init: Initial weights of the new classifier.
        label_smoothing: Probability mass that the loss spreads over all classes.
        mixup: Beta parameter of mixup, 0 for none.
        cutmix: Beta parameter of cutmix, 0 for none; with both, each batch draws one of them.
    """

    def __init__(
        self,
        backbone: str = "vit_base_patch16_224.augreg_in21k",
        pretrained: bool | str = True,
        num_classes: int = 1000,
        backbone_args: dict[str, Any] | None = None,
        drop_path: float = 0.0,
        head_init: Literal["trunc_normal", "linear", "zero"] = "trunc_normal",
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes}: expected at least 2 classes")
        self.backbone_name, self.pretrained, self.num_classes = backbone, pretrained, num_classes
        self.backbone_args, self.drop_path, self.head_init = dict(backbone_args or {}), drop_path, head_init
        self.label_smoothing = label_smoothing
        self.mixup = None
        if mixup > 0 or cutmix > 0:
            self.mixup = Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=num_classes)
        self.class_names: list[str] = []
        self.build_backbone()
        self.val_metrics = self.metrics("val/")
        self.test_metrics = self.metrics("test/")
        self.val_loss, self.test_loss = MeanMetric(), MeanMetric()

    def build_backbone(self) -> None:
        """Make the plain backbone anew, with a fresh head of ``num_classes`` outputs."""
        args = self.backbone_args | ({"drop_path_rate": self.drop_path} if self.drop_path else {})
        self.backbone = build_backbone(self.backbone_name, self.pretrained, args)
        reset_head(self.backbone, self.num_classes, self.head_init)

    @property
    def head_names(self) -> list[str]:
        """Module names of the classifier inside the backbone."""
        return list(head_modules(self.backbone))

    @property
    def input_config(self) -> dict[str, Any]:
        """Size, mean, std and interpolation that the backbone was trained with; datamodules follow it."""
        return input_config(self.backbone)

    def metrics(self, prefix: str) -> MetricCollection:
        classes: dict[str, Any] = {"num_classes": self.num_classes, "ignore_index": PADDING}
        metrics: dict[str, Metric | MetricCollection] = {"acc1": MulticlassAccuracy(average="micro", **classes)}
        if self.num_classes > 5:
            metrics["acc5"] = MulticlassAccuracy(average="micro", top_k=5, **classes)
        metrics["mean_class_acc"] = MulticlassAccuracy(average="macro", **classes)
        return MetricCollection(metrics, prefix=prefix)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised images (B, 3, H, W)."""
        with self.mixed_dtypes():
            return self.backbone.forward_head(self.forward_features(x))

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross entropy of images (B, 3, H, W) and labels (B,)."""
        images, labels = batch
        if self.mixup is not None and self.training:
            if len(images) % 2:
                raise ValueError(f"batch_size={len(images)}: mixup and cutmix pair images and need an even batch size")
            images, targets = self.mixup(images, labels)  # soft labels (B, K), already smoothed
            return F.cross_entropy(self(images).float(), targets)
        return F.cross_entropy(self(images).float(), labels, label_smoothing=self.label_smoothing)

    def evaluate(self, batch: tuple[Tensor, Tensor], metrics: MetricCollection, mean_loss: MeanMetric) -> None:
        images, labels = batch
        logits = self(images).float()
        metrics.update(logits, labels)
        losses = F.cross_entropy(logits, labels, reduction="none", ignore_index=PADDING)
        mean_loss.update(losses, weight=(labels != PADDING).float())

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.evaluate(batch, self.val_metrics, self.val_loss)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(
            {**self.val_metrics.compute(), "val/loss": self.val_loss.compute()}, prog_bar=True, sync_dist=True
        )
        self.val_metrics.reset()
        self.val_loss.reset()

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.evaluate(batch, self.test_metrics, self.test_loss)

    def on_test_epoch_end(self) -> None:
        self.log_dict({**self.test_metrics.compute(), "test/loss": self.test_loss.compute()}, sync_dist=True)
        self.test_metrics.reset()
        self.test_loss.reset()

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Class probabilities (B, num_classes)."""
        return self(batch[0]).float().softmax(dim=1)

    def setup(self, stage: str) -> None:
        names = list(getattr(self.trainer.datamodule, "class_names", []))  # type: ignore[attr-defined]
        if stage != "fit":  # an adapter folder is loaded before the data are known
            check_classes(names, self.class_names)
        self.class_names = names

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["class_names"] = self.class_names

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = checkpoint.get("class_names") or []
        check_classes(self.class_names, trained)
        self.class_names = trained

    def example_input(self) -> Tensor:
        """One image of zeros (1, 3, H, W) on the module's device, for counting FLOPs."""
        return torch.zeros(1, *self.input_config["input_size"], device=self.device)


def check_classes(here: list[str], there: list[str]) -> None:
    """Refuse data whose classes are not those of the checkpoint, in its order."""
    if here and there and here != there:
        shown = f"{', '.join(here[:10])} here, {', '.join(there[:10])} there"
        raise ValueError(f"the data have other classes than the checkpoint: {shown}")
