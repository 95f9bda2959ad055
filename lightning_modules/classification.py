"""Image classification."""

from typing import Any, ClassVar, Literal

import torch
from timm.data import Mixup
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from backbones.timm_models import build_backbone, head_modules, init_head, input_config, reset_head
from lightning_modules.batch import PADDING
from lightning_modules.task import Headline, TaskModule


class Classification(TaskModule):
    """Image classification with a timm backbone.

    Args:
        backbone: Full timm tag such as ``vit_base_patch16_224.augreg_in21k``, or ``local-dir:PATH``.
        pretrained: ``true`` for the weights of the tag, ``false`` for random ones, or the path of a weight file.
        num_classes: Number of classes; on the command line the data say it.
        backbone_args: Further arguments of ``timm.create_model``.
        drop_path: Stochastic depth rate of the last block (linear over depth).
        head_init: Initial weights of the new classifier: ``trunc_normal`` of std 0.02 as timm's ViT, ``linear`` as
            torch's layers, ``zero``, or ``vpt`` (Kaiming normal, bias -4.6: every class starts at a sigmoid of 0.01).
        label_smoothing: Probability mass that the loss spreads over all classes.
        mixup: Beta parameter of mixup, 0 for none.
        cutmix: Beta parameter of cutmix, 0 for none; with both, each batch draws one of them.
    """

    headline = Headline("acc1", higher_is_better=True, label="top-1 (%)", scale=100.0)
    links: ClassVar[dict[str, str]] = {"num_classes": "num_classes"}

    def __init__(
        self,
        backbone: str = "vit_base_patch16_224.augreg_in21k",
        pretrained: bool | str = True,
        num_classes: int = 1000,
        backbone_args: dict[str, Any] | None = None,
        drop_path: float = 0.0,
        head_init: Literal["trunc_normal", "linear", "zero", "vpt"] = "trunc_normal",
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes}: expected at least 2 classes")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing}: expected a share of at least 0 and below 1")
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path={drop_path}: expected a probability of at least 0 and below 1")
        for name, value in {"mixup": mixup, "cutmix": cutmix}.items():
            if value < 0:
                raise ValueError(f"{name}={value}: expected a positive number, or 0 for none")
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
        # what some test sets of ImageNet ask for: to choose among some classes, and a number for each of their parts
        self.class_subset: list[int] | None = None
        self.part_accuracy = nn.ModuleDict()

    def build_backbone(self) -> None:
        """Make the plain backbone anew, with a fresh head of ``num_classes`` outputs."""
        args = self.backbone_args | ({"drop_path_rate": self.drop_path} if self.drop_path else {})
        self.backbone = build_backbone(self.backbone_name, self.pretrained, args)
        reset_head(self.backbone, self.num_classes, self.head_init)
        self.scale_width()

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

    def forward(self, x: Tensor | tuple[Tensor, ...]) -> Tensor:
        """Logits (B, num_classes) of normalised images (B, 3, H, W), or of what the frozen backbone says of them."""
        with self.mixed_dtypes():
            if isinstance(x, tuple):
                return self.forward_frozen(x)  # type: ignore[operator]
            return self.forward_head(self.forward_features(x))

    def forward_head(self, features: Tensor) -> Tensor:
        """Logits of features. Methods whose features are not the backbone's override this."""
        return self.backbone.forward_head(features)

    def resize_head(self, width: int) -> None:
        """Make the classifier anew for features of another width."""
        for name in head_modules(self.backbone):
            new = nn.Linear(width, self.num_classes)
            init_head(new, self.head_init)
            self.backbone.set_submodule(name, new)

    def prepare(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) and labels (B,), or soft ones (B, K) where mixup or cutmix has mixed them."""
        images, labels = batch
        if self.mixup is None or not self.training:
            return images, labels
        count, odd = len(images), len(images) % 2  # an image is mixed with its mirror in the batch; copy one if odd
        images, labels = torch.cat([images, images[:odd]]), torch.cat([labels, labels[:odd]])
        images, labels = self.mixup(images, labels)
        return images[:count], labels[:count]

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy of logits (B, K)."""
        if targets.dim() > 1:  # soft labels are smoothed already
            return F.cross_entropy(outputs.float(), targets)
        return F.cross_entropy(outputs.float(), targets, label_smoothing=self.label_smoothing)

    def masked(self, logits: Tensor) -> Tensor:
        """Logits (B, K) with those of classes that may not be chosen at minus infinity."""
        if self.class_subset is None:
            return logits
        some = torch.tensor(self.class_subset, device=logits.device)
        return torch.full_like(logits, -torch.inf).index_copy(1, some, logits[:, some])

    def evaluate(self, batch: tuple[Tensor, Tensor], metrics: MetricCollection, mean_loss: MeanMetric) -> Tensor:
        images, labels = batch
        logits = self.masked(self(images).float())
        metrics.update(logits, labels)
        losses = F.cross_entropy(logits, labels, reduction="none", ignore_index=PADDING)
        mean_loss.update(losses, weight=(labels != PADDING).float())
        return logits

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.evaluate(batch, self.val_metrics, self.val_loss)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(
            {**self.val_metrics.compute(), "val/loss": self.val_loss.compute()}, prog_bar=True, sync_dist=True
        )
        self.val_metrics.reset()
        self.val_loss.reset()

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        logits = self.evaluate(batch, self.test_metrics, self.test_loss)
        if self.part_accuracy:
            part: Any = list(self.part_accuracy.values())[dataloader_idx]
            part.update(logits, batch[1])

    def on_test_epoch_end(self) -> None:
        self.log_dict({**self.test_metrics.compute(), "test/loss": self.test_loss.compute()}, sync_dist=True)
        if self.part_accuracy:
            parts: dict[str, Any] = dict(self.part_accuracy.items())
            accuracy = {name: float(metric.compute()) for name, metric in parts.items()}
            scores = accuracy | self.trainer.datamodule.summary(accuracy)  # type: ignore[attr-defined]
            self.log_dict({f"test/{name}": value for name, value in scores.items()}, sync_dist=True)
        self.test_metrics.reset()
        self.test_loss.reset()

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Class probabilities (B, num_classes)."""
        return self.masked(self(batch[0]).float()).softmax(dim=1)

    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self.class_subset = getattr(data, "class_subset", None)
        parts = getattr(data, "test_names", [])
        options: dict[str, Any] = {"num_classes": self.num_classes, "average": "micro", "ignore_index": PADDING}
        self.part_accuracy = nn.ModuleDict({name: MulticlassAccuracy(**options) for name in parts})
        names = list(getattr(data, "class_names", []))
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
