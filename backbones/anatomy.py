"""Anatomy of a backbone: its blocks, linear layers and norms."""

import re
from collections.abc import Iterable
from types import NoneType
from typing import Any, NamedTuple

from timm.layers import (
    DropPath,
    RmsNorm,
    RmsNorm2d,
    RmsNorm2dFp32,
    RmsNormFp32,
    ScaledStdConv2d,
    ScaledStdConv2dSame,
    SimpleNorm,
    SimpleNorm2d,
    SimpleNorm2dFp32,
    SimpleNormFp32,
    StdConv2d,
    StdConv2dSame,
)
from timm.models.beit import Attention as BeitAttention
from timm.models.beit import Beit
from timm.models.beit import Block as BeitBlock
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.mlp_mixer import Affine
from timm.models.naflexvit import NaFlexVit
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import Block, VisionTransformer
from timm.models.vision_transformer_relpos import RelPosBlock, VisionTransformerRelPos
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from backbones.inject import Backbone
from backbones.projections import POOLS

LINEAR = (nn.Linear, nn.Conv2d, Affine)  # layers whose outputs are linear in the tensors of `output_names`
# classes of norms, because names do not tell: norms in the stem and downsampling of a ConvNeXt have numbers as names
NORMS: tuple[type[nn.Module], ...] = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm, nn.RMSNorm)
NORMS += (RmsNorm, RmsNormFp32, RmsNorm2d, RmsNorm2dFp32, SimpleNorm, SimpleNormFp32, SimpleNorm2d, SimpleNorm2dFp32)


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


def output_layer(backbone: Backbone) -> str | None:
    """Name of the layer from features to the words of a language model, which can share its weight with their table."""
    found = getattr(backbone, "get_output_embeddings", lambda: None)()
    return next((name for name, module in backbone.named_modules() if found is not None and module is found), None)


def linear_layers(backbone: Backbone, heads: tuple[str, ...] = ()) -> dict[str, nn.Linear]:
    """Linear layers of the blocks by name, without the layers ``heads`` of the classifier, and that of words."""
    outputs = (*heads, output_layer(backbone))
    return {
        name: module
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear)
        and not {"patch_embed", "attn_pool"} & {*name.split(".")}
        and not any(name == head or name.startswith(f"{head}.") for head in outputs)
    }


def weight_layers(backbone: Backbone, heads: tuple[str, ...] = ()) -> dict[str, nn.Linear | nn.Conv2d]:
    """Linear layers and convolutions by name outside stem, pooling attention, the layers ``heads`` and of words."""
    stem, outputs = stem_parameters(backbone), (*heads, output_layer(backbone))
    pools = tuple(f"{name}." for name, module in backbone.named_modules() if isinstance(module, POOLS))
    return {
        name: module
        for name, module in backbone.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
        # torch reads the weight of this class without calling the layer
        and not isinstance(module, NonDynamicallyQuantizableLinear)
        and not any(name == head or name.startswith(f"{head}.") for head in outputs)
        and f"{name}.weight" not in stem
        and not name.startswith(("patch_embed.", *pools))
    }


def reads_bare_weight(backbone: Backbone, name: str) -> bool:
    """Whether a layer is a fused qkv of BEiT, EVA or Swin V2, whose attention uses its weight without calling it."""
    attention = backbone.get_submodule(name.rpartition(".")[0])
    own_bias = getattr(attention, "q_bias", None) is not None
    return ends(name, "qkv") and own_bias and not getattr(attention, "qkv_bias_separate", False)


def call_qkv(backbone: Backbone, called: bool = True) -> None:
    """Make the attention of BEiT, EVA and Swin V2 call its fused ``qkv`` and add the bias afterwards, or undo it.

    Otherwise it reads the bare weight, and a method at ``qkv`` has no effect. The outputs are equal.

    Args:
        backbone: The network, changed in place.
        called: Whether the layer is called. A layer that has a bias of its own is called in any case.
    """
    for module in backbone.modules():
        if getattr(module, "q_bias", None) is not None and hasattr(module, "qkv_bias_separate"):
            module.qkv_bias_separate = called or module.qkv.bias is not None


def separate_bias(backbone: Backbone, name: str) -> tuple[nn.Parameter, nn.Parameter] | None:
    """Biases of query and value that the attention of BEiT, EVA or Swin V2 adds to its bias-free ``qkv``."""
    attention = backbone.get_submodule(name.rpartition(".")[0])
    if not ends(name, "qkv") or getattr(attention, "q_bias", None) is None:
        return None
    return attention.q_bias, attention.v_bias


def ignores_key_bias(backbone: Backbone, name: str) -> bool:
    """Whether a bias of the keys changes no output of the attention with the layer ``name``.

    The softmax ignores a constant that is added to all scores of a query. It is not constant if keys are rotated by
    their position, or normalised.
    """
    attention = backbone.get_submodule(name.rpartition(".")[0])
    if isinstance(attention, BeitAttention):
        return True
    plain = isinstance(attention, EvaAttention) and isinstance(attention.k_norm, nn.Identity)
    return plain and getattr(backbone, "rope", None) is None


def output_names(layer: nn.Module) -> tuple[str, str] | None:
    """Names of the tensors in which the output of a layer is linear, like ``weight`` and ``bias``; None if it is not.

    The output of a convolution with a standardised weight is linear in its gain.
    """
    if isinstance(layer, (ScaledStdConv2d, ScaledStdConv2dSame)):
        return "gain", "bias"
    if isinstance(layer, (StdConv2d, StdConv2dSame, nn.Identity)):
        return None
    return ("alpha", "beta") if isinstance(layer, Affine) else ("weight", "bias")


def patch_positions(backbone: Backbone, name: str) -> Tensor | None:
    """Position embeddings (1, N, C) that a ViT adds to the output of its patch embedding ``name``, without a norm."""
    table = getattr(backbone, "pos_embed", None)
    if not isinstance(backbone, (VisionTransformer, Beit, Eva)) or name != "patch_embed.proj" or table is None:
        return None
    return table[:, table.shape[1] - backbone.patch_embed.num_patches :]


def final_identity(backbone: Backbone) -> str | None:
    """Name of the identity in the place of the final norm: in a ViT with average pooling, and in a ConvNeXt."""
    name = "norm_pre" if isinstance(backbone, ConvNeXt) else "norm"
    known = isinstance(backbone, (ConvNeXt, VisionTransformer))
    return name if known and isinstance(getattr(backbone, name), nn.Identity) else None


def head_norm(backbone: Backbone) -> dict[str, nn.Module]:
    """Norm inside the head of a ConvNeXt by name; empty for other networks."""
    if isinstance(backbone, ConvNeXt) and isinstance(backbone.head.norm, nn.Module):
        return {"head.norm": backbone.head.norm}
    return {}


def owner(backbone: nn.Module, name: str) -> nn.Module:
    """Module of the parameter ``name``."""
    return backbone.get_submodule(name.rpartition(".")[0])


def replaceable(backbone: Backbone, names: Iterable[str]) -> list[str]:
    """Names of parameters whose values can be replaced on reading.

    Torch reads those of recurrent layers elsewhere; a table of words can be the weight of the output layer too.
    """
    output = output_layer(backbone)
    shared = None if output is None else backbone.get_submodule(output).weight
    names = [name for name in names if backbone.get_parameter(name) is not shared]
    return [name for name in names if not isinstance(owner(backbone, name), nn.RNNBase)]


def stem_parameters(backbone: Backbone) -> set[str]:
    """Names of the parameters of the stem: first convolutions, patch and position embeddings, tokens.

    timm lists them for layer-wise learning rates. Parameters of the network itself, such as tokens, are also included.
    In a model of text they are the tables of words and positions, with a norm behind them.
    """
    names = [name for name, _ in backbone.named_parameters()]
    if hasattr(backbone, "get_input_embeddings"):
        return {n for n in names if isinstance(owner(backbone, n), nn.Embedding) or "embeddings" in n.split(".")}
    matcher = backbone.group_matcher() if hasattr(backbone, "group_matcher") else {}
    if callable(matcher):
        return {name for name in names if "." not in name or matcher(name) == 0}
    specs = [spec for group, spec in matcher.items() if group.startswith("stem") and spec is not None]
    patterns = [part for spec in specs for part in ([spec] if isinstance(spec, str) else [part[0] for part in spec])]
    return {name for name in names if "." not in name or any(re.match(pattern, name) for pattern in patterns)}


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
    return isinstance(block, (Block, EvaBlock, RelPosBlock, BeitBlock))


def attends_without_positions(block: Any) -> bool:
    """Whether the attention of a block has no positions, so that it can run on a part of the tokens."""
    return isinstance(block, Block)


def drop_path_rate(block: nn.Module) -> float:
    """Probability of dropping a branch of a block for an image."""
    return next((module.drop_prob for module in block.modules() if isinstance(module, DropPath)), 0.0)


def has_windows(backbone: Backbone) -> bool:
    """Whether a backbone is a Swin, with stages of windows."""
    return isinstance(backbone, SwinTransformer)
