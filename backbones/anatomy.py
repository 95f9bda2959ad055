"""Anatomy of a backbone: its blocks, linear layers and norms."""

import re
from typing import Any

from timm.models.eva import EvaBlock
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from backbones.attention import POOLS
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


def weight_layers(backbone: Backbone, heads: tuple[str, ...] = ()) -> dict[str, nn.Linear | nn.Conv2d]:
    """Linear layers and convolutions by name that lie outside stem, pooling attention and the layers ``heads``."""
    stem = stem_parameters(backbone)
    pools = tuple(f"{name}." for name, module in backbone.named_modules() if isinstance(module, POOLS))
    return {
        name: module
        for name, module in backbone.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
        # torch reads the weight of this class without calling the layer
        and not isinstance(module, NonDynamicallyQuantizableLinear)
        and name not in heads
        and f"{name}.weight" not in stem
        and not name.startswith(("patch_embed.", *pools))
    }


def reads_bare_weight(backbone: Backbone, name: str) -> bool:
    """Whether a layer is a fused qkv of BEiT, EVA or Swin V2 that its attention does not call: see ``call_qkv``."""
    attention = backbone.get_submodule(name.rpartition(".")[0])
    return ends(name, "qkv") and has_own_bias(attention) and not attention.qkv_bias_separate


def call_qkv(backbone: Backbone) -> list[Any]:
    """Let the attention of BEiT, EVA and Swin V2 call its layer ``qkv``, and add its own bias to the output in place.

    By default it reads the weight without calling the layer, so that a changed ``forward`` has no effect.

    Returns:
        The layers, also after a second call; none in other families.
    """
    attentions = [m for m in backbone.modules() if has_own_bias(m)]
    for attention in attentions:
        attention.qkv_bias_separate = True
    return [attention.qkv for attention in attentions]


def restore_qkv(backbone: Backbone) -> None:
    """Undo ``call_qkv``."""
    for attention in [m for m in backbone.modules() if has_own_bias(m)]:
        attention.qkv_bias_separate = False


def has_own_bias(attention: Any) -> bool:
    """Whether an attention keeps the bias of its layer ``qkv`` in parameters of its own."""
    return hasattr(attention, "qkv_bias_separate") and attention.qkv is not None and attention.q_bias is not None


def owner(backbone: nn.Module, name: str) -> nn.Module:
    """Module of the parameter ``name``."""
    return backbone.get_submodule(name.rpartition(".")[0])


def stem_parameters(backbone: Backbone) -> set[str]:
    """Names of the parameters of the stem: first convolutions, patch and position embeddings, tokens.

    timm lists them for layer-wise learning rates. Parameters of the network itself, such as tokens, are also included.
    """
    names = [name for name, _ in backbone.named_parameters()]
    matcher = backbone.group_matcher() if hasattr(backbone, "group_matcher") else {}
    if callable(matcher):
        return {name for name in names if "." not in name or matcher(name) == 0}
    specs = [spec for group, spec in matcher.items() if group.startswith("stem") and spec is not None]
    patterns = [part for spec in specs for part in ([spec] if isinstance(spec, str) else [part[0] for part in spec])]
    return {name for name in names if "." not in name or any(re.match(pattern, name) for pattern in patterns)}


FROZEN = ("head", "cls_token", "patch_embed", "stem", "pos_embed")  # never scored
