"""Where things are in a backbone: blocks, linear layers, norms."""

from typing import Any

from timm.models.eva import EvaBlock
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch import nn

from backbones.inject import Backbone


def transformer_blocks(backbone: Backbone) -> list[Any]:
    """The pre-norm blocks of a ViT, EVA or Swin, first to last: ``norm1``, ``attn``, ``norm2``, ``mlp``, residuals.

    Raises:
        ValueError: If the backbone has none.
    """
    # by class, not by child names: SwinV2 has the same names and its norms behind the branches
    blocks = [m for m in backbone.modules() if isinstance(m, (Block, EvaBlock, SwinTransformerBlock))]
    if not blocks:
        raise ValueError(f"{type(backbone).__name__} has no pre-norm transformer blocks: use a ViT, EVA or Swin")
    return blocks


def per_block(option: str, values: list[int] | None, common: int, blocks: int) -> list[int]:
    """A size for every block: those of an option, or ``common`` for all.

    Raises:
        ValueError: If there is not one for each block, or none above 0.
    """
    if values is None:
        return [common] * blocks
    if len(values) != blocks or min(values) < 0 or not any(values):
        raise ValueError(f"{option}={values}: expected a size for each of the {blocks} blocks, 0 for none, not all 0")
    return values


def ends(name: str, end: str) -> bool:
    """Whether the dotted name ends with the whole words of ``end``."""
    return name == end or name.endswith(f".{end}")


def linear_layers(backbone: Backbone, heads: tuple[str, ...] = ()) -> dict[str, nn.Linear]:
    """The linear layers by name, without the classifier's and those outside the blocks."""
    return {
        name: module
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and name not in heads and not name.startswith(("patch_embed.", "attn_pool."))
    }


def reads_bare_weight(backbone: Backbone, name: str) -> bool:
    """Whether a layer is a fused qkv of BEiT, EVA or Swin V2, which add their bias themselves and never call it."""
    attention = backbone.get_submodule(name.rpartition(".")[0])
    own_bias = getattr(attention, "q_bias", None) is not None
    return ends(name, "qkv") and own_bias and not getattr(attention, "qkv_bias_separate", False)


def owner(backbone: nn.Module, name: str) -> nn.Module:
    """The module of a parameter."""
    return backbone.get_submodule(name.rpartition(".")[0])


FROZEN = ("head", "cls_token", "patch_embed", "stem", "pos_embed")  # never scored
