"""Heads of segmentation by the value of the option ``head``."""

from typing import Literal

from torch import nn

from lightning_modules.heads.linear import Linear
from lightning_modules.heads.semantic_fpn import SemanticFPN
from lightning_modules.heads.setr import SETRPUP
from lightning_modules.heads.upernet import FCN, UperNet

Head = Literal["linear", "upernet", "semantic_fpn", "setr_pup"]
AUXILIARY = 256  # channels of UperNet's auxiliary head, for all published widths of UperNet
LAST_NORMED = ("linear", "setr_pup")  # heads that read the normed patches at the end of a plain ViT


def decoders(
    head: Head, widths: list[int], num_classes: int, channels: int, auxiliary: bool
) -> tuple[nn.Module, nn.ModuleList]:
    """Head and auxiliary heads, each from maps to logits.

    The auxiliary head of UperNet reads the third map. SETR-PUP reads the last map, its auxiliary heads the others.

    Args:
        head: Name of the head.
        widths: Channels of the maps.
        num_classes: Number of classes.
        channels: Channels inside the head.
        auxiliary: Whether there are auxiliary heads.

    Raises:
        ValueError: If the head reads one map of a plain ViT, and these are maps of several sizes.
    """
    if head == "linear":
        return Linear(widths, num_classes), nn.ModuleList()
    if head == "semantic_fpn":
        return SemanticFPN(widths, num_classes, channels), nn.ModuleList()
    if head == "upernet":
        fcn = [FCN(widths[2], num_classes, min(channels // 2, AUXILIARY))] if auxiliary else []
        return UperNet(widths, num_classes, channels), nn.ModuleList(fcn)
    if len(set(widths)) > 1:
        raise ValueError(
            f"head='setr_pup' reads the patches of a plain ViT, and here are maps of {widths} channels: use upernet, "
            "semantic_fpn or linear"
        )
    others = [SETRPUP(width, num_classes, channels, steps=1, factor=4) for width in widths[:-1]] if auxiliary else []
    return SETRPUP(widths[-1], num_classes, channels), nn.ModuleList(others)
