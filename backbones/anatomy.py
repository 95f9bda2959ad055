"""Anatomy of a backbone: its blocks, linear layers and norms."""

from typing import Any

from timm.models.eva import EvaBlock
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch import nn

from backbones.inject import Backbone


def transformer_blocks(backbone: Backbone) -> list[Any]:
    """Pre-norm blocks of a ViT, EVA or Swin, first to last: ``norm1``, ``attn``, ``norm2``, ``mlp``, residuals.

    Raises:
        ValueError: If the backbone has no such blocks.
    """
    # by class and not by the names of children, because SwinV2 has the same names but norms after the branches
    blocks = [m for m in backbone.modules() if isinstance(m, (Block, EvaBlock, SwinTransformerBlock))]
    if not blocks:
        raise ValueError(f"{type(backbone).__name__} has no pre-norm transformer blocks: use a ViT, EVA or Swin")
    return blocks


def per_block(option: str, values: list[int] | None, common: int, blocks: int) -> list[int]:
    """Size for each block: the values of an option, or ``common`` for all blocks.

    Args:
        option: Name of the option, for messages.
        values: Its values, one for each block, or None.
        common: Size of all blocks if ``values`` is None.
        blocks: Number of blocks.

    Raises:
        ValueError: If there is not one value for each block, or no value is above 0.
    """
    if values is None:
        return [common] * blocks
    if len(values) != blocks or min(values) < 0 or not any(values):
        raise ValueError(f"{option}={values}: expected a size for each of the {blocks} blocks, 0 for none, not all 0")
    return values


def ends(name: str, end: str) -> bool:
    """Whether the last parts of a dotted name are equal to ``end``: ``ends("blocks.0.mlp.fc1", "mlp.fc1")``."""
    return name == end or name.endswith(f".{end}")


def linear_layers(backbone: Backbone, heads: tuple[str, ...] = ()) -> dict[str, nn.Linear]:
    """Linear layers of the blocks by name, without the layers ``heads`` of the classifier."""
    return {
        name: module
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and name not in heads and not name.startswith(("patch_embed.", "attn_pool."))
    }


def reads_bare_weight(backbone: Backbone, name: str) -> bool:
    """Whether a layer is a fused qkv of BEiT, EVA or Swin V2, whose attention uses its weight without calling it."""
    attention = backbone.get_submodule(name.rpartition(".")[0])
    own_bias = getattr(attention, "q_bias", None) is not None
    return ends(name, "qkv") and own_bias and not getattr(attention, "qkv_bias_separate", False)


def owner(backbone: nn.Module, name: str) -> nn.Module:
    """Module of the parameter ``name``."""
    return backbone.get_submodule(name.rpartition(".")[0])


FROZEN = ("head", "cls_token", "patch_embed", "stem", "pos_embed")  # never scored
