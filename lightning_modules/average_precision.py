"""Average precision of boxes and masks, as COCO computes it."""

from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

SIZES = ("small", "medium", "large")  # of objects: below 32 x 32 pixels, up to 96 x 96, and above
NAMES = {"bbox": "box_map", "segm": "mask_map"}


class AveragePrecision(MeanAveragePrecision):
    """COCO's AP: mean over overlaps of 0.50 to 0.95 in steps of 0.05, over 101 recalls, and over classes.

    ``compute`` gives ``box_map``, ``box_map_50`` and ``box_map_75`` at one overlap, ``box_map_small`` and others for
    objects of one size if there are any, and the same for masks.

    Args:
        masks: Whether images have masks beside boxes.

    Raises:
        ValueError: If faster-coco-eval is not installed, with the command that installs it.
    """

    def __init__(self, masks: bool) -> None:
        mask_library()
        with torch.device("cpu"):  # because a model that is built without values still needs those of the overlaps
            super().__init__(iou_type=("bbox", "segm") if masks else ("bbox",), backend="faster_coco_eval")

    def compute(self) -> dict[str, Tensor]:
        found, values = super().compute(), dict[str, Tensor]()
        for kind in self.iou_type:
            before = f"{kind}_" if len(self.iou_type) > 1 else ""
            for end in ("", "_50", "_75", *(f"_{size}" for size in SIZES)):
                value = found[f"{before}map{end}"]
                if value >= 0 or not end:  # -1 for objects of a size that no image has
                    values[NAMES[kind] + end] = value.float().to(self.device)
        return values

    def _sync_dist(self, dist_sync_fn: Any = None, process_group: Any = None) -> None:
        """Gather the images of all ranks in the order of the samples.

        torchmetrics expects equal numbers of images on all ranks. Ranks differ by one where a rank has an image that
        only evens them out.
        """
        parts: list[Any] = [None] * torch.distributed.get_world_size(process_group)
        own = {name: getattr(self, name) for name in self._defaults}
        torch.distributed.all_gather_object(parts, own, group=process_group)
        for name in own:
            turns = zip_longest(*(part[name] for part in parts))  # rank 0 has sample 0, rank 1 has sample 1, ...
            setattr(self, name, [image for turn in turns for image in turn if image is not None])


def mask_library() -> Any:
    """Functions of faster-coco-eval for masks as polygons and as runs.

    Raises:
        ValueError: If it is not installed, with the command that installs it.
    """
    try:
        from faster_coco_eval.core import mask
    except ImportError as error:
        raise ValueError(
            "detection needs faster-coco-eval: pip install faster-coco-eval (or `.[detection]` of this project)"
        ) from error
    return mask
