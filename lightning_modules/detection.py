"""Detection and instance segmentation."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchvision.models.detection.roi_heads import paste_masks_in_image

from backbones.pyramid import STRIDES, even_blocks, patch_maps, patch_stride, stage_maps, stages
from backbones.timm_inputs import check_input_size
from backbones.timm_models import build_backbone, input_config
from lightning_modules.average_precision import AveragePrecision
from lightning_modules.batch import Batch
from lightning_modules.heads.necks import PyramidNeck, SimpleFeaturePyramid
from lightning_modules.heads.regions import in_mode
from lightning_modules.heads.two_stage import WITH_MASKS, Head, PerImage, TwoStage
from lightning_modules.named_classes import NamedClasses
from lightning_modules.task import Headline

LEVELS = 5  # maps of the neck


class Detection(NamedClasses):
    """Detection, and instance segmentation with a head that predicts masks, with a timm backbone.

    The targets of an image are a dict: ``boxes`` (n, 4) as left, top, right and bottom in pixels, fp32; ``labels`` (n,)
    from 1, because 0 is the background; ``masks`` (n, H, W), uint8, for a head with masks; ``size``, height and width
    of the image as the model gets it, without its padding; ``original``, those of its file. In training boxes and masks
    have the first size, in an evaluation the second one, with ``iscrowd`` (n,) and ``area`` (n,) beside them.

    Args:
        backbone: Full timm tag such as ``vit_base_patch16_224.augreg_in21k``, or ``local-dir:PATH``. A plain ViT that
            takes images of any size, or a network with stages of strides 4, 8, 16 and 32 such as Swin, ConvNeXt or
            ResNet.
        pretrained: ``true`` for the weights of the tag, ``false`` for random ones, or the path of a weight file.
        num_classes: Number of classes without the background; on the command line it comes from the data.
        backbone_args: Further arguments of ``timm.create_model``, such as ``{dynamic_img_size: true}``.
        drop_path: Stochastic depth rate of the last block; the rate grows linearly over the blocks.
        head: Detector. ``faster_rcnn``: Faster R-CNN. ``mask_rcnn``: the same with masks. ``cascade_rcnn``: Cascade
            R-CNN. ``cascade_mask_rcnn``: the same with masks.
        neck: Maps between a plain ViT and the head. ``fpn``: those of four blocks, brought to the strides of a pyramid,
            and a feature pyramid, which is also the neck of a network with stages and of HST. ``simple``: the pyramid
            of ViTDet over the last block.
        head_channels: Channels of the neck, the proposal layer and the mask head.
        box_channels: Width of the layers behind a pooled region.
        anchor_sizes: Side in pixels of the square anchor of each of the five maps.
        proposals: Regions of an image that an evaluation looks at; training looks at twice as many.
        regions: Regions of an image that a training step learns from.
    """

    headline = Headline("box_map", higher_is_better=True, label="box AP", scale=100.0)
    links: ClassVar[dict[str, str]] = {"num_classes": "num_classes"}
    targets = "objects"
    dense = True
    necks = ("neck",)

    def __init__(
        self,
        backbone: str = "vit_base_patch16_224.augreg_in21k",
        pretrained: bool | str = True,
        num_classes: int = 80,
        backbone_args: dict[str, Any] | None = None,
        drop_path: float = 0.0,
        head: Head = "mask_rcnn",
        neck: Literal["fpn", "simple"] = "fpn",
        head_channels: int = 256,
        box_channels: int = 1024,
        anchor_sizes: list[int] = [32, 64, 128, 256, 512],  # noqa: B006 (copied below)
        proposals: int = 1000,
        regions: int = 512,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path={drop_path}: expected a probability of at least 0 and below 1")
        if len(anchor_sizes) != LEVELS or min(anchor_sizes) < 1:
            raise ValueError(f"anchor_sizes={anchor_sizes}: expected {LEVELS} sizes in pixels, one for each map")
        counts = {"num_classes": num_classes, "head_channels": head_channels, "box_channels": box_channels}
        for name, count in (counts | {"proposals": proposals, "regions": regions}).items():
            if count < 1:
                raise ValueError(f"{name}={count}: expected at least 1")
        self.backbone_name, self.pretrained, self.num_classes = backbone, pretrained, num_classes
        self.backbone_args, self.drop_path = dict(backbone_args or {}), drop_path
        self.head, self.neck_name, self.head_channels = head, neck, head_channels
        self.with_masks = head in WITH_MASKS  # whether there are masks beside boxes
        self.sizes: dict[str, Any] = {
            "channels": head_channels,
            "anchor_sizes": (*anchor_sizes,),
            "proposals": proposals,
            "regions": regions,
            "box_channels": box_channels,
        }
        self.build()
        self.init_metrics()

    # model

    def build(self) -> None:
        """Build a new plain backbone without a classifier, a neck and the head."""
        args = self.backbone_args | ({"drop_path_rate": self.drop_path} if self.drop_path else {})
        self.backbone = build_backbone(self.backbone_name, self.pretrained, args)
        self.backbone.reset_classifier(0)
        self.example_size: tuple[int, int] = tuple(self.input_config["input_size"][1:])
        found = stages(self.backbone)
        self.plain = found is None
        if found is not None:
            if self.neck_name == "simple":
                raise ValueError(
                    f"neck='simple' reads the last block of a plain ViT, and {type(self.backbone).__name__} has "
                    "stages: use the neck fpn"
                )
            self.places = list(found)
            self.read_pyramid(list(found.values()))
            return
        width, patch = self.backbone.embed_dim, patch_stride(self.backbone)
        self.places = even_blocks(self.backbone)
        self.neck: nn.Module = PyramidNeck([width] * 4, self.head_channels, tokens=True)
        if self.neck_name == "simple":
            self.places, self.neck = self.places[-1:], SimpleFeaturePyramid(width, self.head_channels)
        self.build_decoder([patch / 4, patch / 2, patch, 2 * patch])

    def read_pyramid(self, widths: list[int]) -> None:
        self.neck = PyramidNeck(widths, self.head_channels, tokens=False)
        self.build_decoder([*STRIDES])

    def build_decoder(self, strides: list[float]) -> None:
        """Build the head for maps of four strides in pixels, and of twice the last one."""
        self.decoder = TwoStage(self.head, self.num_classes, [*strides, 2 * strides[-1]], **self.sizes)

    def heads(self) -> dict[str, nn.Module]:
        return {"neck": self.neck, "decoder": self.decoder}

    @property
    def input_config(self) -> dict[str, Any]:
        """Size, mean, std and interpolation of the backbone's training images, which datamodules use."""
        return input_config(self.backbone)

    @property
    def divisor(self) -> int:
        """Number of pixels of which the sides of a padded batch are multiples, so that all maps fit."""
        return 2 * patch_stride(self.backbone) if self.plain else STRIDES[-1]

    def check_input_size(self, size: tuple[int, int, int]) -> None:
        """Refuse images of a size (C, H, W) that the backbone cannot take; a datamodule asks before it reads an image.

        Raises:
            ValueError: With the size, the expected one and the options.
        """
        check_input_size(self.backbone, size, tuple(self.input_config["input_size"]), several=True)
        self.example_size = size[1:]

    def features(self, inputs: Tensor) -> list[Tensor]:
        """Maps (B, C, h, w) of images (B, 3, H, W): stages, or blocks of a plain ViT."""
        return self.maps(self.backbone, inputs)

    def maps(self, backbone: nn.Module, images: Tensor) -> list[Tensor]:
        """Maps (B, C, h, w) of a backbone of this form, for images (B, 3, H, W)."""
        return (patch_maps if self.plain else stage_maps)(backbone, images, self.places)

    def predict_from(self, features: list[Tensor]) -> list[Tensor]:
        """Five maps (B, C, h, w) of the neck, fp32; ``losses`` and ``infer`` run the head on them."""
        return [x.float() for x in self.neck(features)]

    def logits(self, outputs: list[Tensor]) -> Tensor:
        """Logits (B, 2, n) of ground and object at each anchor."""
        with self.mixed_dtypes():
            return self.decoder.objectness(outputs)

    def outputs_with(self, backbone: nn.Module, inputs: Tensor) -> list[Tensor]:
        """Maps of the neck for a plain backbone under the neck of this task."""
        return self.predict_from(self.maps(backbone, inputs))

    def export(self, backbone: nn.Module, folder: Path) -> None:
        """Write ``model.safetensors`` and ``config.json`` of a timm model; neck and head as ``head.safetensors``."""
        names = {"label_names": self.class_names} if self.class_names else None
        save_for_hf(backbone, str(folder), model_config=names, safe_serialization=True)
        state = {name: tensor for name, tensor in self.state_dict().items() if self.in_head(name)}
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "head.safetensors")

    # training

    def losses(self, outputs: list[Tensor], targets: PerImage) -> dict[str, Tensor]:
        """Losses of proposals, classes, boxes and masks, by torchvision's names."""
        with in_mode(self.decoder, True), self.mixed_dtypes():
            return self.decoder(outputs, [target["size"] for target in targets], targets)[1]

    def loss_key(self) -> str:
        return f"head={self.head} neck={self.neck_name} {self.sizes}"

    # evaluation

    def infer(self, batch: Batch) -> PerImage:
        """Objects of each image with their ``scores`` (n,), best first, in the size of the files."""
        maps = self(batch.inputs)
        with in_mode(self.decoder, False), self.mixed_dtypes():
            found = self.decoder(maps, [target["size"] for target in batch.targets])[0]
        return [in_file(*pair) for pair in zip(found, batch.targets, strict=True)]

    def metrics(self) -> MetricCollection:
        return MetricCollection({"box_map": AveragePrecision(self.with_masks)})

    def update(self, metrics: MetricCollection, outputs: PerImage, batch: Batch) -> None:
        """Add objects of images to metrics."""
        pairs = zip(outputs, batch.targets, batch.valid.tolist(), strict=True)
        counted = [(on_cpu(found), on_cpu(target)) for found, target, valid in pairs if valid]
        if counted:
            metrics.update(*map(list, zip(*counted, strict=True)))

    def predictions(self, outputs: PerImage) -> PerImage:
        return [on_cpu(found) for found in outputs]

    def example_batch(self) -> Batch:
        """One image of zeros (1, 3, H, W) with an object of class 1, in the dtype of the frozen weights."""
        images = torch.zeros(1, 3, *self.example_size, device=self.device).to(self.dtype)
        target = example_target(self.example_size, self.device, self.with_masks)
        return Batch(images, [target], torch.ones(1, dtype=torch.bool, device=self.device))

    def example_outputs(self) -> PerImage:
        return self.infer(self.example_batch())


def example_target(size: tuple[int, int], device: torch.device, masks: bool) -> dict[str, Any]:
    """Target of an image with an object of class 1 in its upper left quarter."""
    height, width = size
    mask = torch.zeros(1, height, width, dtype=torch.uint8, device=device)
    mask[:, : height // 2, : width // 2] = 1
    found = {
        "boxes": torch.tensor([[0.0, 0.0, width // 2, height // 2]], device=device),
        "labels": torch.ones(1, dtype=torch.long, device=device),
        "size": size,
        "original": size,
    }
    return found | ({"masks": mask} if masks else {})


def in_file(found: dict[str, Tensor], target: dict[str, Any]) -> dict[str, Tensor]:
    """Objects of an image in the pixels of its file: ``boxes``, ``labels``, ``scores``, ``masks`` (n, H, W), bool."""
    (height, width), (rows, columns) = target["size"], target["original"]
    factors = found["boxes"].new_tensor([columns / width, rows / height] * 2)
    found = found | {"boxes": found["boxes"] * factors}
    if "masks" in found:
        found["masks"] = paste_masks_in_image(found["masks"], found["boxes"], (rows, columns))[:, 0] > 0.5
    return found


def on_cpu(target: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors of an image on the CPU."""
    return {name: value.cpu() for name, value in target.items() if isinstance(value, Tensor)}
