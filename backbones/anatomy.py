"""Anatomy of a backbone: its blocks, linear layers and norms."""

from types import NoneType
from typing import Any, NamedTuple

from timm.layers import DropPath
from timm.models import beit
from timm.models.beit import Beit
from timm.models.eva import Eva, EvaBlock
from timm.models.naflexvit import NaFlexVit
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from timm.models.vision_transformer import Block, VisionTransformer
from timm.models.vision_transformer_relpos import RelPosBlock, VisionTransformerRelPos
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


class TokenSequence(NamedTuple):
    """A sequence of tokens (B, N, C) that all blocks of a backbone read and write.

    Args:
        blocks: Blocks, first to last.
        width: Width C of a token.
        prefix: Number of class and register tokens, which come before the patches.
    """

    blocks: list[Any]
    width: int
    prefix: int


def token_sequence(backbone: Backbone, use: str) -> TokenSequence:
    """Token sequence of a plain vision transformer.

    Args:
        backbone: The backbone.
        use: Method and what it does with the tokens, for the message.

    Raises:
        ValueError: If the backbone belongs to another family.
    """
    if not isinstance(backbone, (VisionTransformer, VisionTransformerRelPos, Eva, Beit, NaFlexVit)):
        raise ValueError(
            f"{use}, and {type(backbone).__name__} is not known to have one sequence of tokens for all of its blocks: "
            "use a ViT (also DeiT, CLIP, SigLIP, DINOv2, DINOv3), EVA or BEiT, or a method for other backbones such as "
            "ssf, lora or bitfit"
        )
    return TokenSequence([*backbone.blocks], backbone.embed_dim, backbone.num_prefix_tokens)


def patch_embedding(backbone: Backbone) -> Any:
    """Layer from images to patches of a plain vision transformer."""
    return backbone.embeds if isinstance(backbone, NaFlexVit) else backbone.patch_embed


def token_grid(backbone: Backbone, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the patches of a plain vision transformer, for images of a size in pixels."""
    return patch_embedding(backbone).dynamic_feat_size(size)


def drops_patches(backbone: Backbone) -> bool:
    """Whether a plain vision transformer drops patches in training."""
    return not isinstance(getattr(backbone, "patch_drop", None), (nn.Identity, NoneType))


def norms_first(block: Any) -> bool:
    """Whether a block of a plain vision transformer norms its input before attention reads it, and adds the result."""
    return isinstance(block, (Block, EvaBlock, RelPosBlock, beit.Block))


def drop_path_rate(block: nn.Module) -> float:
    """Probability of dropping a branch of a block for an image."""
    return next((module.drop_prob for module in block.modules() if isinstance(module, DropPath)), 0.0)


def has_windows(backbone: Backbone) -> bool:
    """Whether a backbone is a Swin, with stages of windows."""
    return isinstance(backbone, SwinTransformer)
