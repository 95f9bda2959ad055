"""Segmentation of one kind of object with SAM, without prompts."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection

from backbones.pyramid import sam_channels
from backbones.timm_inputs import check_input_size
from backbones.timm_models import build_backbone, input_config
from lightning_modules.batch import Batch
from lightning_modules.heads.layers import resized
from lightning_modules.heads.sam_decoder import SAMDecoder
from lightning_modules.metrics import ForegroundShare, WeightedMean, foreground
from lightning_modules.named_classes import NamedClasses
from lightning_modules.segmentation import IGNORED
from lightning_modules.task import Headline


class PixelBinaryCrossEntropy(WeightedMean):
    """Mean binary cross entropy of logits (B, 1, H, W) with labels (B, H, W), without pixels of ``IGNORED``."""

    def update(self, outputs: Tensor, labels: Tensor) -> None:
        super().update(pixel_losses(outputs, labels), labels != IGNORED)


class BinarySegmentation(NamedClasses):
    """Segmentation of one kind of object, such as polyps, with SAM's image encoder and mask decoder, without prompts.

    Class 0 is the background and class 1 the object. The mask decoder trains in full, as in GPS.

    Args:
        backbone: Image encoder: full timm tag such as ``samvit_base_patch16.sa1b``, or ``local-dir:PATH``.
        pretrained: ``true`` for the weights of the tag, ``false`` for random ones, or the path of a weight file.
        decoder_weights: ``true`` for the mask decoder of SAM ViT-B, ``false`` for random weights, otherwise a folder or
            a name on the hub with a SAM model in the form of transformers.
        num_classes: Number of classes, background included: 2; on the command line it comes from the data.
        backbone_args: Further arguments of ``timm.create_model``, such as ``{img_size: 512}``.
        drop_path: Stochastic depth rate of the last block; the rate grows linearly over the blocks.
    """

    headline = Headline("Dice", higher_is_better=True, label="Dice (%)", scale=100.0)
    links: ClassVar[dict[str, str]] = {"num_classes": "num_classes"}
    targets = "masks"
    dense = True

    def __init__(
        self,
        backbone: str = "samvit_base_patch16.sa1b",
        pretrained: bool | str = True,
        decoder_weights: bool | str = True,
        num_classes: int = 2,
        backbone_args: dict[str, Any] | None = None,
        drop_path: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_classes != 2:
            raise ValueError(
                f"num_classes={num_classes}: expected 2 classes, the background and the object; more classes are for "
                "--task segmentation"
            )
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path={drop_path}: expected a probability of at least 0 and below 1")
        self.backbone_name, self.pretrained, self.num_classes = backbone, pretrained, num_classes
        self.decoder_weights = decoder_weights
        self.backbone_args, self.drop_path = dict(backbone_args or {}), drop_path
        self.build()
        self.init_metrics()

    # model

    def build(self) -> None:
        """Build a new plain image encoder and its mask decoder.

        Raises:
            ValueError: If the backbone is no image encoder of SAM.
        """
        args = self.backbone_args | ({"drop_path_rate": self.drop_path} if self.drop_path else {})
        self.backbone = build_backbone(self.backbone_name, self.pretrained, args)
        channels = sam_channels(self.backbone)
        self.backbone.reset_classifier(0)
        self.window: tuple[int, int] = tuple(self.input_config["input_size"][1:])
        self.decoder = SAMDecoder(channels, self.decoder_weights)

    def heads(self) -> dict[str, nn.Module]:
        return {"decoder": self.decoder}

    @property
    def input_config(self) -> dict[str, Any]:
        """Size, mean, std and interpolation of the backbone's training images, which datamodules use."""
        return input_config(self.backbone)

    def check_input_size(self, size: tuple[int, int, int]) -> None:
        """Refuse crops of a size (C, H, W) that the backbone cannot take; a datamodule asks before it reads an image.

        Raises:
            ValueError: With the size, the expected one and the options.
        """
        check_input_size(self.backbone, size, tuple(self.input_config["input_size"]))
        self.window = size[1:]

    def predict_from(self, features: Tensor) -> Tensor:
        """Logits (B, 1, 4 h, 4 w) of the object, for maps (B, C, h, w) of the image encoder."""
        return self.decoder(features)

    def logits(self, outputs: Tensor) -> Tensor:
        """Logits (B, 2, H, W) of background and object; their softmax is the sigmoid of the outputs."""
        return torch.cat([torch.zeros_like(outputs), outputs], dim=1)

    def outputs_with(self, backbone: nn.Module, inputs: Tensor) -> Tensor:
        """Logits (B, 1, h, w) of images for a plain image encoder under the mask decoder of this task."""
        return self.predict_from(backbone.forward_features(inputs))  # type: ignore[operator]

    def export(self, backbone: nn.Module, folder: Path) -> None:
        """Write ``model.safetensors`` and ``config.json`` of a timm model, and its decoder as ``head.safetensors``."""
        save_for_hf(backbone, str(folder), safe_serialization=True)
        state = {name: tensor for name, tensor in self.state_dict().items() if self.in_head(name)}
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "head.safetensors")

    # training

    def losses(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Binary cross entropy and ``1 - IoU`` of shares, for logits (B, 1, h, w) and labels (B, H, W)."""
        outputs = resized(outputs, targets.shape[1:]).float()
        valid = targets != IGNORED
        entropy = (pixel_losses(outputs, targets) * valid).sum() / valid.sum().clamp(min=1)
        return {"task_loss": entropy, "iou_loss": soft_iou_loss(outputs, targets)}

    # evaluation

    def infer(self, batch: Batch) -> Tensor:
        """Logits (B, 1, H, W) in the size of the labels, for images that are resized to the size of the encoder."""
        images = batch.inputs
        if tuple(images.shape[2:]) != self.window:
            images = F.interpolate(images, self.window, mode="bilinear", antialias=True)
        return resized(self(images), batch.targets.shape[1:])

    def metrics(self) -> MetricCollection:
        shares: dict[str, Any] = {
            "Dice": ForegroundShare("dice"),
            "IoU": ForegroundShare("iou"),
            "Dice_image_mean": ForegroundShare("dice", per_image=True),
            "IoU_image_mean": ForegroundShare("iou", per_image=True),
            # what the code of GPS computes and the paper prints as mDice and mIoU
            "gps_recall_dice": ForegroundShare("recall_dice"),
            "gps_recall_iou": ForegroundShare("recall"),
        }
        return MetricCollection(
            shares | {"loss": PixelBinaryCrossEntropy()},
            compute_groups=[list(shares), ["loss"]],  # one set of counts; finding groups makes a GPU wait
        )

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        """Add logits (B, 1, H, W) to metrics."""
        labels = batch.targets.masked_fill(~batch.valid[:, None, None], IGNORED)
        metrics.update(outputs.float(), labels)

    def predictions(self, outputs: Tensor) -> Tensor:
        """Classes (B, H, W) of pixels, uint8: 1 is the object."""
        return foreground(outputs.float()).to(torch.uint8)

    def example_batch(self) -> Batch:
        """One image of zeros (1, C, H, W) that is all object, in the dtype of the frozen weights."""
        channels, height, width = self.input_config["input_size"]
        images = torch.zeros(1, channels, height, width, device=self.device).to(self.dtype)
        return Batch.of(images, torch.ones(1, height, width, dtype=torch.long, device=self.device))


def pixel_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropy (B, H, W) of logits (B, 1, H, W) with labels (B, H, W); no value where they are 255."""
    return F.binary_cross_entropy_with_logits(logits[:, 0], (labels == 1).to(logits.dtype), reduction="none")


def soft_iou_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """``1 - intersection / union`` of the shares of logits (B, 1, H, W) with labels (B, H, W), mean over images."""
    valid = labels != IGNORED
    shares, object_ = logits[:, 0].sigmoid() * valid, (labels == 1).to(logits.dtype)
    both = (shares * object_).sum((1, 2))
    union = (shares + object_).sum((1, 2)) - both
    return (1 - both / union.clamp(min=1e-6)).mean()
