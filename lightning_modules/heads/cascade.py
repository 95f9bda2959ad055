"""Cascade R-CNN (arXiv:1712.00726): three stages of boxes, each trained on the better boxes of the one before."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_inference, maskrcnn_loss
from torchvision.ops import clip_boxes_to_image

OVERLAPS = (0.5, 0.6, 0.7)  # intersection over union from which a box of a stage is an object
DELTAS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))  # factors of a stage's deltas
WEIGHTS = (1.0, 0.5, 0.25)  # of the losses of a stage

PerImage = list[dict[str, Tensor]]


class AgnosticPredictor(FastRCNNPredictor):
    """Scores of K + 1 classes, and one box for all classes together."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, classes)
        self.bbox_pred = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (n, K + 1) and deltas (n, 4 (K + 1)), equal for all classes, as torchvision's RoI heads read them."""
        scores, deltas = super().forward(x)
        return scores, deltas.repeat(1, scores.shape[1])


class CascadeRoIHeads(RoIHeads):
    """torchvision's RoI heads with three stages.

    Args:
        heads: Layers from pooled regions to features of each stage.
        predictors: Layers from these features to scores and deltas of each stage.
        options: Arguments of ``RoIHeads``, without the box head and its predictor.
    """

    def __init__(self, heads: list[nn.Module], predictors: list[nn.Module], **options: Any) -> None:
        super().__init__(box_head=nn.ModuleList(heads), box_predictor=nn.ModuleList(predictors), **options)
        self.matchers = [Matcher(overlap, overlap, allow_low_quality_matches=False) for overlap in OVERLAPS]
        self.coders = [BoxCoder(weights) for weights in DELTAS]

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: PerImage | None = None,
    ) -> tuple[PerImage, dict[str, Tensor]]:
        """Boxes of images in eval mode, and losses in training mode."""
        losses, shares, labels, matched = dict[str, Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
        deltas: Any = None  # of the stage before
        stages = zip(self.box_head, self.box_predictor, self.matchers, self.coders, WEIGHTS, strict=True)
        for number, (head, predictor, matcher, coder, weight) in enumerate(stages, 1):
            self.proposal_matcher, self.box_coder = matcher, coder
            if deltas is not None:
                proposals = self.refined(deltas, proposals, image_shapes, self.coders[number - 2])
            if self.training:
                proposals, matched, labels, wanted = self.select_training_samples(proposals, targets)
            scores, deltas = predictor(head(self.box_roi_pool(features, proposals, image_shapes)))
            if self.training:
                of_class, of_box = fastrcnn_loss(scores, deltas, labels, wanted)
                losses |= {f"loss_classifier_{number}": weight * of_class, f"loss_box_reg_{number}": weight * of_box}
            shares.append(scores.softmax(-1))
        if self.training:
            assert targets is not None
            return [], losses | self.mask_loss(features, proposals, image_shapes, targets, labels, matched)
        # the softmax of these logs is the mean itself
        mean = torch.stack(shares).mean(0).clamp(min=1e-30).log()
        found = zip(*self.postprocess_detections(mean, deltas, proposals, image_shapes), strict=True)
        result = [dict(zip(("boxes", "scores", "labels"), parts, strict=True)) for parts in found]
        self.add_masks(features, result, image_shapes)
        return result, {}

    @staticmethod
    def refined(deltas: Tensor, proposals: list[Tensor], sizes: list[tuple[int, int]], coder: BoxCoder) -> list[Tensor]:
        """Boxes of the stage before, inside the images and without gradients."""
        boxes = coder.decode(deltas[:, :4].detach(), proposals)[:, 0]
        parts = boxes.split([len(part) for part in proposals])
        return [clip_boxes_to_image(part, size) for part, size in zip(parts, sizes, strict=True)]

    def mask_loss(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        sizes: list[tuple[int, int]],
        targets: PerImage,
        labels: list[Tensor],
        matched: list[Tensor],
    ) -> dict[str, Tensor]:
        """Loss of the masks of the last stage's objects; empty without a mask head."""
        if not self.has_mask():
            return {}
        kept = [label > 0 for label in labels]
        boxes = [box[keep] for box, keep in zip(proposals, kept, strict=True)]
        owners = [index[keep] for index, keep in zip(matched, kept, strict=True)]
        logits = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, sizes)))
        masks, classes = ([target[name] for target in targets] for name in ("masks", "labels"))
        return {"loss_mask": maskrcnn_loss(logits, boxes, masks, classes, owners)}

    def add_masks(self, features: dict[str, Tensor], result: PerImage, sizes: list[tuple[int, int]]) -> None:
        """Add the masks (n, 1, 28, 28) of found boxes, if there is a mask head."""
        if not self.has_mask():
            return
        pooled = self.mask_roi_pool(features, [found["boxes"] for found in result], sizes)
        logits = self.mask_predictor(self.mask_head(pooled))
        for found, mask in zip(result, maskrcnn_inference(logits, [r["labels"] for r in result]), strict=True):
            found["masks"] = mask
