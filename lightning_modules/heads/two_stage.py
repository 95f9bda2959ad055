"""Detectors of two stages: Faster R-CNN (arXiv:1506.01497), Mask R-CNN (arXiv:1703.06870) and Cascade R-CNN.

Layers, thresholds and losses are torchvision's; its numbers are those of the papers.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from lightning_modules.heads.cascade import DELTAS, OVERLAPS, AgnosticPredictor, CascadeRoIHeads
from lightning_modules.heads.regions import RATIOS, Anchors, in_fp32, region_pool

Head = Literal["faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn"]
WITH_MASKS = ("mask_rcnn", "cascade_mask_rcnn")
"""Heads that predict the mask of each object beside its box."""
PerImage = list[dict[str, Any]]
"""For each image ``boxes`` (n, 4) as left, top, right, bottom in pixels, ``labels`` (n,) from 1, and others."""


class TwoStage(nn.Module):
    """Region proposals from five maps, then a class, a box and a mask for each region.

    Args:
        head: The detector.
        num_classes: Number of classes K, without the background.
        strides: Stride in pixels of each of the five maps.
        channels: Channels of the maps, of the proposal layer and of the mask head.
        anchor_sizes: Side in pixels of the square anchor of each map.
        proposals: Regions of an image that an evaluation looks at; training looks at twice as many.
        regions: Regions of an image that a training step learns from.
        box_channels: Width of the layers behind a pooled region.
    """

    def __init__(
        self,
        head: Head,
        num_classes: int,
        strides: list[float],
        channels: int = 256,
        anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512),
        proposals: int = 1000,
        regions: int = 512,
        box_channels: int = 1024,
    ) -> None:
        super().__init__()
        tops = {"training": 2 * proposals, "testing": proposals}
        self.rpn = RegionProposalNetwork(
            Anchors([*anchor_sizes], strides),
            RPNHead(channels, len(RATIOS)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n=tops,
            post_nms_top_n=tops,
            nms_thresh=0.7,
        )
        options: dict[str, Any] = {
            "box_roi_pool": region_pool(7, strides[:4]),
            "fg_iou_thresh": OVERLAPS[0],
            "bg_iou_thresh": OVERLAPS[0],
            "batch_size_per_image": regions,
            "positive_fraction": 0.25,
            "bbox_reg_weights": DELTAS[0],
            "score_thresh": 0.05,
            "nms_thresh": 0.5,
            "detections_per_img": 100,
        }
        if head in WITH_MASKS:
            options |= {
                "mask_roi_pool": region_pool(14, strides[:4]),
                "mask_head": MaskRCNNHeads(channels, (channels,) * 4, dilation=1),
                "mask_predictor": MaskRCNNPredictor(channels, channels, num_classes + 1),
            }
        cascade = head.startswith("cascade")
        kind = AgnosticPredictor if cascade else FastRCNNPredictor
        heads: list[nn.Module] = [TwoMLPHead(49 * channels, box_channels) for _ in range(3 if cascade else 1)]
        predictors: list[nn.Module] = [kind(box_channels, num_classes + 1) for _ in heads]
        if cascade:
            self.roi_heads: RoIHeads = CascadeRoIHeads(heads, predictors, **options)
        else:
            self.roi_heads = RoIHeads(box_head=heads[0], box_predictor=predictors[0], **options)
        for layer in (self.rpn.head, *predictors, *(m for m in self.modules() if isinstance(m, MaskRCNNPredictor))):
            layer.register_forward_hook(in_fp32)

    def forward(
        self, maps: list[Tensor], sizes: list[tuple[int, int]], targets: PerImage | None = None
    ) -> tuple[PerImage, dict[str, Tensor]]:
        """In eval mode the objects of each image, in training mode the losses.

        Args:
            maps: Five maps (B, C, h, w), fp32.
            sizes: Height and width in pixels of each image without its padding.
            targets: Objects of each image, with ``masks`` (n, H, W) for a head with masks; for losses.
        """
        images, named = ImageList(maps[0], sizes), {str(level): x for level, x in enumerate(maps)}
        proposals, of_proposals = self.rpn(images, named, targets)
        found, of_regions = self.roi_heads(named, proposals, sizes, targets)
        return found, of_regions | of_proposals

    def objectness(self, maps: list[Tensor]) -> Tensor:
        """Logits (B, 2, n) of ground and object at each anchor of maps (B, C, h, w)."""
        scores = torch.cat([x.flatten(1) for x in self.rpn.head(maps)[0]], dim=1)
        return torch.stack([torch.zeros_like(scores), scores], dim=1)
