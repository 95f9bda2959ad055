"""Semantic segmentation."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection

from backbones.pyramid import ViTPyramid, even_blocks, patch_maps, stage_maps, stages
from backbones.timm_inputs import check_input_size
from backbones.timm_models import build_backbone, input_config
from lightning_modules.batch import Batch
from lightning_modules.heads.decoders import LAST_NORMED, Head, decoders
from lightning_modules.heads.layers import resized
from lightning_modules.metrics import ConfusionShare, WeightedMean
from lightning_modules.named_classes import NamedClasses
from lightning_modules.sliding_window import multi_scale
from lightning_modules.task import Headline

IGNORED = 255  # label of pixels that losses and metrics leave out
AUXILIARY_BLOCKS = (9 / 24, 14 / 24, 19 / 24)  # places of SETR's auxiliary heads in the depth of a ViT


class PixelCrossEntropy(WeightedMean):
    """Mean cross entropy of logits (B, K, H, W) with labels (B, H, W), without pixels of the label ``IGNORED``."""

    def update(self, outputs: Tensor, labels: Tensor) -> None:
        losses = F.cross_entropy(outputs, labels, reduction="none", ignore_index=IGNORED)
        super().update(losses, labels != IGNORED)


class Segmentation(NamedClasses):
    """Semantic segmentation with a timm backbone.

    Args:
        backbone: Full timm tag such as ``vit_base_patch16_224.augreg_in21k``, or ``local-dir:PATH``. A plain ViT, or a
            network with stages of strides 4, 8, 16 and 32 such as Swin, ConvNeXt or ResNet.
        pretrained: ``true`` for the weights of the tag, ``false`` for random ones, or the path of a weight file.
        num_classes: Number of classes; on the command line it comes from the data.
        backbone_args: Further arguments of ``timm.create_model``, such as ``{img_size: 512}``.
        drop_path: Stochastic depth rate of the last block; the rate grows linearly over the blocks.
        head: Layers from maps to logits. ``linear``: BatchNorm and one layer, on the normed patches of a plain ViT, or
            on all stages. ``upernet``: UperNet with one auxiliary head. ``semantic_fpn``: Semantic FPN. ``setr_pup``:
            SETR-PUP with three auxiliary heads, for a plain ViT only.
        head_channels: Channels inside the head; by default 512 for ``upernet``, else 256.
        map_blocks: Blocks of a plain ViT, from 0, whose outputs become the four maps of ``upernet`` and
            ``semantic_fpn``; evenly spaced by default, ``[2, 5, 8, 11]`` of 12. DyT's code reads ``[3, 5, 7, 11]``.
        auxiliary_weight: Weight of the losses of auxiliary heads; 0 for no such heads.
        eval_stride: Share of a window by which windows move over an image of an evaluation, 341 of 512 pixels by
            default.
        eval_scales: Factors of the size of an image, over which an evaluation averages class probabilities.
        eval_flip: Whether an evaluation averages over mirrored images too.
    """

    headline = Headline("mIoU", higher_is_better=True, label="mIoU (%)", scale=100.0)
    links: ClassVar[dict[str, str]] = {"num_classes": "num_classes"}
    targets = "masks"
    dense = True
    necks = ("neck",)

    def __init__(
        self,
        backbone: str = "vit_base_patch16_224.augreg_in21k",
        pretrained: bool | str = True,
        num_classes: int = 150,
        backbone_args: dict[str, Any] | None = None,
        drop_path: float = 0.0,
        head: Head = "upernet",
        head_channels: int | None = None,
        auxiliary_weight: float = 0.4,
        eval_stride: float = 341 / 512,
        eval_scales: list[float] = [1.0],  # noqa: B006 (copied below)
        eval_flip: bool = False,
        map_blocks: list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 2 <= num_classes <= IGNORED:
            raise ValueError(f"num_classes={num_classes}: expected 2 to {IGNORED}, because {IGNORED} is no class")
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path={drop_path}: expected a probability of at least 0 and below 1")
        if head_channels is not None and (head_channels < 2 or head_channels % 2 or head == "linear"):
            raise ValueError(f"head_channels={head_channels}: expected an even number, and no linear head")
        if auxiliary_weight < 0:
            raise ValueError(f"auxiliary_weight={auxiliary_weight}: expected a positive weight, or 0 for no such head")
        check_evaluation(eval_stride, eval_scales)
        self.backbone_name, self.pretrained, self.num_classes = backbone, pretrained, num_classes
        self.backbone_args, self.drop_path = dict(backbone_args or {}), drop_path
        self.head, self.head_channels = head, head_channels or (512 if head == "upernet" else 256)
        self.auxiliary_weight, self.map_blocks = auxiliary_weight, map_blocks
        self.eval_stride, self.eval_scales, self.eval_flip = eval_stride, list(eval_scales), eval_flip
        self.build()
        self.init_metrics()

    # model

    def build(self) -> None:
        """Build a new plain backbone without a classifier, a neck for a plain ViT, and the heads."""
        args = self.backbone_args | ({"drop_path_rate": self.drop_path} if self.drop_path else {})
        self.backbone = build_backbone(self.backbone_name, self.pretrained, args)
        self.backbone.reset_classifier(0)
        self.window: tuple[int, int] = tuple(self.input_config["input_size"][1:])
        found = stages(self.backbone)
        self.plain = found is None
        self.neck: nn.Module | None = None
        if self.map_blocks is not None and (found is not None or self.head in LAST_NORMED):
            raise ValueError(f"map_blocks={self.map_blocks}: expected a plain ViT and upernet or semantic_fpn")
        if found is not None:
            self.places = list(found)
            self.build_heads(list(found.values()))
            return
        width, depth = self.backbone.embed_dim, len(self.backbone.blocks)
        if self.head in LAST_NORMED:
            places = [round(share * depth) for share in AUXILIARY_BLOCKS] if self.head == "setr_pup" else []
            # a shallow ViT has fewer blocks before the last one
            self.places = sorted({place for place in places if place < depth - 1}) if self.auxiliary_weight else []
            self.build_heads([width] * (len(self.places) + 1))
        else:
            self.places = even_blocks(self.backbone) if self.map_blocks is None else self.map_blocks
            check_blocks(self.places, depth)
            self.neck = ViTPyramid(width)
            self.build_heads([width] * 4)

    def build_heads(self, widths: list[int]) -> None:
        """Build the head and the auxiliary heads for maps with ``widths`` channels."""
        auxiliary = self.auxiliary_weight > 0
        self.decoder, self.auxiliary = decoders(self.head, widths, self.num_classes, self.head_channels, auxiliary)

    def heads(self) -> dict[str, nn.Module]:
        found = {"neck": self.neck, "decoder": self.decoder, "auxiliary": self.auxiliary}
        return {name: module for name, module in found.items() if module is not None and list(module.parameters())}

    def read_pyramid(self, widths: list[int]) -> None:
        self.neck = None
        self.build_heads(widths)

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

    def features(self, inputs: Tensor) -> list[Tensor]:
        """Maps (B, C, h, w) of images (B, 3, H, W): stages, blocks of a plain ViT, or its normed patches at the end."""
        return self.maps(self.backbone, inputs)

    def maps(self, backbone: nn.Module, images: Tensor) -> list[Tensor]:
        """Maps (B, C, h, w) of a backbone of this form, for images (B, 3, H, W)."""
        if not self.plain:
            return stage_maps(backbone, images, self.places)
        return patch_maps(backbone, images, self.places, final=self.head in LAST_NORMED)

    def predict_from(self, features: list[Tensor]) -> Tensor | list[Tensor]:
        """Logits (B, K, h, w) of maps; in training a list of them and of those of the auxiliary heads."""
        maps = features if self.neck is None else self.neck(features)
        if self.head == "setr_pup":
            logits, read = self.decoder(maps[-1]), maps[:-1]
        else:
            logits, read = self.decoder(maps), maps[2:3]
        if not (self.training and self.auxiliary):
            return logits
        return [logits, *(head(x) for head, x in zip(self.auxiliary, read, strict=True))]

    def logits(self, outputs: Tensor | list[Tensor]) -> Tensor:
        return outputs[0] if isinstance(outputs, list) else outputs

    def outputs_with(self, backbone: nn.Module, inputs: Tensor) -> Tensor:
        """Logits (B, K, h, w) of images for a plain backbone under the heads of this task."""
        return self.logits(self.predict_from(self.maps(backbone, inputs)))

    def export(self, backbone: nn.Module, folder: Path) -> None:
        """Write ``model.safetensors`` and ``config.json`` of a timm model, and its heads as ``head.safetensors``."""
        names = {"label_names": self.class_names} if self.class_names else None
        save_for_hf(backbone, str(folder), model_config=names, safe_serialization=True)
        state = {name: tensor for name, tensor in self.state_dict().items() if self.in_head(name)}
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "head.safetensors")

    # training

    def losses(self, outputs: Tensor | list[Tensor], targets: Tensor) -> dict[str, Tensor]:
        """Mean cross entropy of logits (B, K, h, w), resized to labels (B, H, W), over all pixels with a label."""
        every = outputs if isinstance(outputs, list) else [outputs]
        first, *others = [pixel_loss(logits, targets) for logits in every]
        if not others:
            return {"task_loss": first}
        return {"task_loss": first, "auxiliary_loss": self.auxiliary_weight * torch.stack(others).sum()}

    def loss_key(self) -> str:
        return f"head={self.head} auxiliary_weight={self.auxiliary_weight}"

    # evaluation

    def infer(self, batch: Batch) -> Tensor:
        """Logits (B, K, H, W) in the size of the labels, by sliding windows; logs of shares for several sizes."""
        height, width = self.window
        stride = max(round(height * self.eval_stride), 1), max(round(width * self.eval_stride), 1)
        logits = multi_scale(self, batch.inputs, self.window, stride, self.eval_scales, self.eval_flip)
        return resized(logits, batch.targets.shape[1:])

    def metrics(self) -> MetricCollection:
        return MetricCollection(
            {
                "mIoU": ConfusionShare("iou", self.num_classes, IGNORED),
                "mAcc": ConfusionShare("accuracy", self.num_classes, IGNORED),
                "aAcc": ConfusionShare("pixels", self.num_classes, IGNORED),
                "loss": PixelCrossEntropy(),
            },
            compute_groups=[["mIoU", "mAcc", "aAcc"], ["loss"]],  # one table of counts; finding groups makes a GPU wait
        )

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        """Add logits (B, K, H, W) to metrics."""
        metrics.update(outputs.float(), batch.targets.masked_fill(~batch.valid[:, None, None], IGNORED))

    def predictions(self, outputs: Tensor) -> Tensor:
        """Classes (B, H, W) of pixels, uint8."""
        return outputs.argmax(1).to(torch.uint8)

    def example_batch(self) -> Batch:
        """One image of zeros (1, C, H, W) of class 0, in the dtype of the frozen weights."""
        channels, height, width = self.input_config["input_size"]
        images = torch.zeros(1, channels, height, width, device=self.device).to(self.dtype)
        return Batch.of(images, torch.zeros(1, height, width, dtype=torch.long, device=self.device))


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of logits (B, K, h, w), resized to labels (B, H, W); 0 if no pixel has a label."""
    logits = resized(logits, labels.shape[1:]).float()
    total = F.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED)
    return total / (labels != IGNORED).sum().clamp(min=1)  # and not the mean, which is no number for such a crop


def check_evaluation(stride: float, scales: list[float]) -> None:
    """Refuse a stride of windows and factors of sizes that cannot be."""
    if not 0 < stride <= 1:
        raise ValueError(f"eval_stride={stride}: expected a share of a window above 0 and at most 1")
    if not scales or min(scales) <= 0:
        raise ValueError(f"eval_scales={scales}: expected positive factors, [1] for the image as it is")


def check_blocks(blocks: list[int], depth: int) -> None:
    """Refuse blocks for maps that are not four blocks of a ViT with ``depth`` of them."""
    if len(blocks) != 4 or not all(0 <= block < depth for block in blocks):
        raise ValueError(f"map_blocks={blocks}: expected four blocks from 0 to {depth - 1}")
