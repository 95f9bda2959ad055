"""Image classification."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from timm.data import Mixup
from timm.models import save_for_hf
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection

from backbones.timm_inputs import check_input_size
from backbones.timm_models import (
    bias_arguments,
    build_backbone,
    classifier_layers,
    head_modules,
    init_head,
    input_config,
    reset_head,
)
from lightning_modules.batch import Batch
from lightning_modules.heads.feature_norm import FeatureNorm, norm_input
from lightning_modules.metrics import ClassAccuracy, WeightedMean
from lightning_modules.named_classes import NamedClasses
from lightning_modules.run import datamodule_of
from lightning_modules.task import Headline

IGNORED = -100  # label of samples that metrics leave out


class MeanCrossEntropy(WeightedMean):
    """Mean cross entropy of logits (B, K) with labels (B,), without samples of the label ``IGNORED``."""

    def update(self, outputs: Tensor, labels: Tensor) -> None:
        losses = F.cross_entropy(outputs, labels, reduction="none", ignore_index=IGNORED)
        super().update(losses, labels != IGNORED)


class Classification(NamedClasses):
    """Image classification with a timm backbone.

    Args:
        backbone: Full timm tag such as ``vit_base_patch16_224.augreg_in21k``, or ``local-dir:PATH``.
        pretrained: ``true`` for the weights of the tag, ``false`` for random ones, or the path of a weight file.
        num_classes: Number of classes; on the command line it comes from the data.
        backbone_args: Further arguments of ``timm.create_model``.
        drop_path: Stochastic depth rate of the last block; the rate grows linearly over the blocks.
        head_init: Initial weights of the new classifier. ``trunc_normal``: std 0.02, as in timm's ViT. ``adaptformer``:
            the same with std 0.01. ``linear``: torch's default of linear layers. ``zero``: zero. ``vpt``: Kaiming
            normal, and a bias of -4.6, so that each class starts at a sigmoid of 0.01.
        head_batch_norm: Whether a BatchNorm without weights norms the features before the classifier, as in the linear
            probe of MAE and in AdaptFormer. A merge computes it into the weights of the classifier.
        label_smoothing: Probability mass that the loss spreads over all classes.
        mixup: Beta parameter of mixup; 0 for no mixup.
        cutmix: Beta parameter of cutmix; 0 for no cutmix. With mixup and cutmix, each batch draws one of them.
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
        head_init: Literal["trunc_normal", "adaptformer", "linear", "zero", "vpt"] = "trunc_normal",
        head_batch_norm: bool = False,
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
        self.head_batch_norm, self.label_smoothing = head_batch_norm, label_smoothing
        self.mixup = None
        if mixup > 0 or cutmix > 0:
            self.mixup = Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=num_classes)
        self.class_subset: list[int] | None = None  # classes that may be predicted; set by ImageNet-A and ImageNet-R
        self.build()
        self.init_metrics()

    # model

    def build(self) -> None:
        """Build a new plain backbone with a fresh classifier of ``num_classes`` outputs."""
        args = self.backbone_args | ({"drop_path_rate": self.drop_path} if self.drop_path else {})
        self.backbone = build_backbone(self.backbone_name, self.pretrained, args)
        reset_head(self.backbone, self.num_classes, self.head_init)
        self.head_norm: FeatureNorm | None = None
        if self.head_batch_norm:
            self.add_head_norm()

    def add_head_norm(self) -> None:
        """Norm the features before the classifier.

        Raises:
            ValueError: If the backbone has no single linear classifier.
        """
        layers = list(classifier_layers(self.backbone).values())
        if len(layers) != 1 or not isinstance(layers[0], nn.Linear):
            raise ValueError(
                f"head_batch_norm=True: {type(self.backbone).__name__} has no single linear classifier, whose input a "
                "BatchNorm could norm; leave it out"
            )
        self.head_norm = FeatureNorm(layers[0].in_features)
        norm_input(layers[0], self.head_norm)

    def heads(self) -> dict[str, nn.Module]:
        return {f"backbone.{name}": head for name, head in head_modules(self.backbone).items()}

    @property
    def input_config(self) -> dict[str, Any]:
        """Size, mean, std and interpolation of the backbone's training images, which datamodules use."""
        return input_config(self.backbone)

    def check_input_size(self, size: tuple[int, int, int]) -> None:
        """Refuse images of a size (C, H, W) that the backbone cannot take; a datamodule asks before it reads any.

        Raises:
            ValueError: With the size, the expected one and the options.
        """
        check_input_size(self.backbone, size, tuple(self.input_config["input_size"]))

    def predict_from(self, features: Tensor) -> Tensor:
        """Logits (B, num_classes) of features."""
        return self.backbone.forward_head(features)

    def outputs_with(self, backbone: nn.Module, inputs: Tensor) -> Tensor:
        """Logits (B, num_classes) of images for a plain backbone, in which the head lies."""
        return backbone(inputs)

    def embedding_layer(self) -> nn.Module:
        """Layer whose input is the embedding of an image: the classifier, or the first one of several.

        Raises:
            ValueError: If the backbone has no classifier of a known form.
        """
        layers = classifier_layers(self.backbone)
        if not layers:
            raise ValueError(f"embeddings: {type(self.backbone).__name__} has no classifier whose input could be kept")
        return next(iter(layers.values()))

    def resize_head(self, width: int, batch_norm: bool = False) -> None:
        for name in classifier_layers(self.backbone):
            new = nn.Linear(width, self.num_classes)
            init_head(new, self.head_init)
            self.backbone.set_submodule(name, new)
        if batch_norm or self.head_batch_norm:
            self.add_head_norm()

    def export(self, backbone: nn.Module, folder: Path) -> None:
        """Write ``model.safetensors`` and ``config.json`` of a timm model, with the names of the classes.

        If the backbone has biases that the plain one lacks, the config has timm's argument for them, if there is one.
        """
        names = {"label_names": self.class_names} if self.class_names else None
        more = backbone.state_dict().keys() - self.backbone.state_dict().keys()
        args = bias_arguments(self.backbone_name, self.backbone_args, backbone) if more else None
        save_for_hf(backbone, str(folder), model_config=names, model_args=args, safe_serialization=True)

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
        """Mean cross entropy of logits (B, K) with labels (B,) or soft labels (B, K)."""
        if targets.dim() > 1:  # soft labels have label smoothing already
            return {"task_loss": F.cross_entropy(outputs.float(), targets)}
        return {"task_loss": F.cross_entropy(outputs.float(), targets, label_smoothing=self.label_smoothing)}

    def loss_key(self) -> str:
        return f"label_smoothing={self.label_smoothing}"

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

    def example_batch(self) -> Batch:
        """One image of zeros (1, C, H, W) of class 0, in the dtype of the frozen weights."""
        device = next(self.backbone.parameters()).device  # self.device is that of the run before the weights are there
        images = torch.zeros(1, *self.input_config["input_size"], device=device).to(self.dtype)
        label = torch.zeros(1, dtype=torch.long, device=device)
        return Batch.of(images, label)
