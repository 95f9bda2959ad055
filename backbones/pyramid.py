"""Maps of a backbone for dense tasks: strides 4, 8, 16 and 32 of stages, or of a plain ViT and its neck."""

from typing import Any

from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn

from backbones.anatomy import token_grid, token_sequence
from backbones.inject import Backbone

STRIDES = (4, 8, 16, 32)


class ViTPyramid(nn.Module):
    """Four maps from four token maps of a plain ViT, with 4, 2, 1 and 1/2 times their sides.

    For patches of 16 pixels these are the strides 4, 8, 16 and 32. The layers are those of DyT: BEiT's without a norm.

    Args:
        width: Channels C of the token maps and of the pyramid.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        twice = nn.Sequential(enlarge(width), nn.GELU(), enlarge(width))
        self.levels = nn.ModuleList([twice, enlarge(width), nn.Identity(), nn.MaxPool2d(2)])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps (B, C, 4 h, 4 w) to (B, C, h / 2, w / 2) of four maps (B, C, h, w)."""
        return [level(x) for level, x in zip(self.levels, maps, strict=True)]


def enlarge(width: int) -> nn.ConvTranspose2d:
    """Layer that doubles the sides of a map."""
    return nn.ConvTranspose2d(width, width, 2, stride=2)


def stages(backbone: Backbone) -> dict[int, int] | None:
    """Channels of the stages with the strides 4, 8, 16 and 32 by their index; None for a plain ViT.

    Raises:
        ValueError: If the backbone has neither such stages nor one sequence of tokens.
    """
    info: Any = getattr(backbone, "feature_info", [])
    last = {stage["reduction"]: (index, stage["num_chs"]) for index, stage in enumerate(info)}
    if hasattr(backbone, "forward_intermediates") and set(STRIDES) <= set(last):
        return dict(last[stride] for stride in STRIDES)
    try:
        token_sequence(backbone, "maps")
    except ValueError as error:
        raise ValueError(
            f"{type(backbone).__name__} has no maps of strides 4, 8, 16 and 32, and not one sequence of patches: use a "
            "ViT, a Swin, a ConvNeXt or a ResNet"
        ) from error
    return None


def stage_maps(backbone: Backbone, images: Tensor, indices: list[int]) -> list[Tensor]:
    """Outputs (B, C, H / stride, W / stride) of stages, for images (B, 3, H, W)."""
    return backbone.forward_intermediates(images, indices=indices, intermediates_only=True)


def even_blocks(backbone: Backbone, count: int = 4) -> list[int]:
    """Indices of evenly spaced blocks of a plain ViT, the last one included: 2, 5, 8 and 11 of 12.

    A ViT with fewer blocks than ``count`` has some indices twice.
    """
    depth = len(backbone.blocks)
    return [max(round((part + 1) * depth / count) - 1, 0) for part in range(count)]


def patch_maps(backbone: Backbone, images: Tensor, blocks: list[int], final: bool = False) -> list[Tensor]:
    """Patches of a plain ViT as maps (B, C, h, w), for images (B, 3, H, W).

    Args:
        backbone: The ViT.
        images: The images.
        blocks: Indices of the blocks whose outputs are read.
        final: Whether the output of the final norm is one more map, the last one.
    """
    rows, columns = token_grid(backbone, (images.shape[2], images.shape[3]))
    indices = sorted({*blocks}) or [0]
    tokens, found = backbone.forward_intermediates(images, indices=indices, output_fmt="NLC")
    by_block = dict(zip(indices, found, strict=True))
    outputs = [*(by_block[index] for index in blocks), *([tokens] if final else [])]
    # patches are the last tokens: prefix tokens come before them, and prompts of a method too
    return [output[:, -rows * columns :].mT.unflatten(2, (rows, columns)) for output in outputs]


def patch_stride(backbone: Backbone) -> int:
    """Side in pixels of a patch of a plain ViT."""
    return int(backbone.feature_info[-1]["reduction"])


def sam_channels(backbone: Backbone) -> int:
    """Channels of the map, of stride 16, that an image encoder of SAM gives to its mask decoder.

    Raises:
        ValueError: If the backbone is no image encoder of SAM.
    """
    if not isinstance(backbone, VisionTransformerSAM):
        raise ValueError(
            f"{type(backbone).__name__} is no image encoder of SAM: use samvit_base_patch16.sa1b, or --task "
            "segmentation, which takes two classes too"
        )
    return backbone.num_features
