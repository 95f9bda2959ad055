"""Residual blocks of a backbone, and the places inside them that methods change."""

from typing import Any, NamedTuple

from timm.layers import GroupNorm, GroupNorm1, LayerNorm2d
from timm.models._efficientnet_blocks import (
    DepthwiseSeparableConv,
    EdgeResidual,
    InvertedResidual,
    UniversalInvertedResidual,
)
from timm.models.beit import Block as BeitBlock
from timm.models.byobnet import BasicBlock as ByoBasicBlock
from timm.models.byobnet import BottleneckBlock as ByoBottleneckBlock
from timm.models.byobnet import ByobNet, DarkBlock, EdgeBlock
from timm.models.convnext import ConvNeXtBlock
from timm.models.csatv2 import TransformerBlock as CSATBlock
from timm.models.davit import ChannelBlock, SpatialBlock
from timm.models.eva import EvaBlock
from timm.models.gcvit import GlobalContextVitBlock
from timm.models.hiera import HieraBlock
from timm.models.hieradet_sam2 import MultiScaleBlock as HieraDetBlock
from timm.models.inception_next import MetaNeXtBlock
from timm.models.maxxvit import PartitionAttentionCl, TransformerBlock2d
from timm.models.mvitv2 import MultiScaleBlock as MViTBlock
from timm.models.regnet import Bottleneck as RegNetBottleneck
from timm.models.resnet import BasicBlock, Bottleneck
from timm.models.resnetv2 import Bottleneck as BiTBottleneck
from timm.models.resnetv2 import PreActBasic, PreActBottleneck
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from timm.models.swin_transformer_v2_cr import SwinTransformerV2CrBlock
from timm.models.vision_transformer import Block, ResPostBlock
from timm.models.vision_transformer_relpos import RelPosBlock, ResPostRelPosBlock
from timm.models.vision_transformer_sam import Block as SAMBlock
from timm.models.volo import ClassBlock, Outlooker, Transformer
from timm.models.xcit import ClassAttentionBlock
from torch import nn

from backbones.inject import Backbone

# children of a pre-norm block; ``drop_path1`` and ``drop_path2`` are the ends of its two branches
PRE_NORM = ("norm1", "attn", "drop_path1", "norm2", "mlp", "drop_path2")
# blocks with the same children, but the norms are behind the branches
POST_NORM = (
    SwinTransformerV2Block,
    SwinTransformerV2CrBlock,
    ResPostBlock,
    ResPostRelPosBlock,
)
# blocks whose attention has one query, the class token
CLASS_ATTENTION = (ClassBlock, ClassAttentionBlock)
# blocks whose branches end in another layout than their norms
RESHAPING = (CSATBlock,)
# blocks whose attention branch can end with another shape than the stream: other tokens, another width or windows
RESIZING = (
    SAMBlock,
    HieraBlock,
    HieraDetBlock,
    TransformerBlock2d,
    MViTBlock,
)
# blocks that read and write maps (B, C, H, W), but are sequences inside
MAPS_OUTSIDE = (SpatialBlock, ChannelBlock)
OTHER_KINDS = (*POST_NORM, *CLASS_ATTENTION, *RESHAPING)
# networks that fold patches into the batch before their blocks
FOLDING = (ByobNet,)
# blocks that read and write maps (B, H, W, C)
MAPS = (SwinTransformerBlock, GlobalContextVitBlock, PartitionAttentionCl, Outlooker, Transformer)
# blocks with one sequence of tokens (B, N, C) for each image
SEQUENCES = (Block, EvaBlock, BeitBlock, RelPosBlock)
CHANNELS_FIRST = (nn.modules.batchnorm._BatchNorm, GroupNorm, GroupNorm1, LayerNorm2d)
# linear layers and convolutions that read the input of an attention, and of an MLP
ATTENTION_INPUTS = ("qkv", "q", "k", "v", "kv", "qk", "wq", "wk", "wv", "q_proj", "k_proj", "v_proj")
MLP_INPUTS = ("fc1", "fc1_g", "fc1_x", "w0", "w1", "w12")
MLP_OUTPUTS = ("fc2", "w2", "w3")
ATTENTION_OUTPUTS = ("proj", "out_proj")


class ConvolutionalBlock(NamedTuple):
    """Layers of a residual block of a convolutional network.

    Args:
        first: Name of its first layer that mixes all channels.
        last: Name of its last layer, whose channels are those of the block.
        spatial: Name of the depthwise convolution that takes the place of attention; None for other blocks.
    """

    first: str
    last: str
    spatial: str | None = None


CONVOLUTIONAL: dict[type[nn.Module], ConvolutionalBlock] = {
    BasicBlock: ConvolutionalBlock("conv1", "conv2"),
    Bottleneck: ConvolutionalBlock("conv1", "conv3"),
    PreActBasic: ConvolutionalBlock("conv1", "conv2"),
    PreActBottleneck: ConvolutionalBlock("conv1", "conv3"),
    BiTBottleneck: ConvolutionalBlock("conv1", "conv3"),
    RegNetBottleneck: ConvolutionalBlock("conv1.conv", "conv3.conv"),
    ByoBasicBlock: ConvolutionalBlock("conv1_kxk.conv", "conv2_kxk.conv"),
    ByoBottleneckBlock: ConvolutionalBlock("conv1_1x1.conv", "conv3_1x1.conv"),
    DarkBlock: ConvolutionalBlock("conv1_1x1.conv", "conv2_kxk.conv"),
    EdgeBlock: ConvolutionalBlock("conv1_kxk.conv", "conv2_1x1.conv"),
    DepthwiseSeparableConv: ConvolutionalBlock("conv_pw", "conv_pw"),
    InvertedResidual: ConvolutionalBlock("conv_pw", "conv_pwl"),
    EdgeResidual: ConvolutionalBlock("conv_exp", "conv_pwl"),
    UniversalInvertedResidual: ConvolutionalBlock("pw_exp.conv", "pw_proj.conv"),
    ConvNeXtBlock: ConvolutionalBlock("mlp.fc1", "mlp.fc2", "conv_dw"),
    MetaNeXtBlock: ConvolutionalBlock("mlp.fc1", "mlp.fc2"),
}
OTHERS = "ssf, lora, bitfit or gps"  # methods that need no blocks


def pre_norm_blocks(backbone: Backbone, use: str) -> list[Any]:
    """Transformer blocks with a norm before both branches, first to last, with the children of ``PRE_NORM``.

    Args:
        backbone: The backbone.
        use: Method and what it does with the blocks, for the message.

    Raises:
        ValueError: If the backbone has no such blocks.
    """
    # by class too, because other blocks have the same names
    blocks = [m for m in backbone.modules() if has(m, PRE_NORM) and not isinstance(m, OTHER_KINDS)]
    if not blocks:
        raise ValueError(
            f"{use}, and {type(backbone).__name__} has no transformer blocks with norms before both branches: use "
            f"a ViT, DINOv3, BEiT or Swin, or another method such as {OTHERS}"
        )
    return blocks


def constant_blocks(backbone: Backbone, use: str) -> list[Any]:
    """Blocks of ``pre_norm_blocks`` with features (B, ..., C) whose attention keeps their shape.

    Raises:
        ValueError: If the backbone has no such blocks, or some that change the shape.
    """
    blocks = pre_norm_blocks(backbone, use)
    changing = any(isinstance(block, RESIZING) or channels_first(block) for block in blocks)
    if changing or isinstance(backbone, FOLDING):
        raise ValueError(
            f"{use}, and blocks of {type(backbone).__name__} change the shape of their tokens: use a ViT, DINOv3, "
            f"BEiT or Swin, or another method such as {OTHERS}"
        )
    return blocks


def last_blocks(backbone: Backbone, count: int) -> list[Any]:
    """Last transformer blocks of a backbone, or the last residual blocks of a convolutional network.

    Args:
        backbone: The backbone.
        count: Number of blocks.

    Raises:
        ValueError: If the backbone has fewer blocks.
    """
    blocks = attention_blocks(backbone) or [block for block, _ in convolutional_blocks(backbone)]
    if count > len(blocks):
        kinds = "" if blocks else " of known kinds, which bitfit and full do not need"
        raise ValueError(f"{len(blocks)}, because {type(backbone).__name__} has {len(blocks)} blocks{kinds}")
    return blocks[-count:]


def attention_blocks(backbone: Backbone) -> list[Any]:
    """Transformer blocks of all kinds, first to last: modules with the children ``attn`` and ``mlp``."""
    blocks = [m for m in backbone.modules() if has(m, ("attn", "mlp")) and not isinstance(m, CLASS_ATTENTION)]
    return [block for block in blocks if final_norm(block) is not None]


def convolutional_blocks(backbone: Backbone) -> list[tuple[Any, ConvolutionalBlock]]:
    """Residual blocks of a convolutional network, first to last, with the names of their first and last layers."""
    return [(m, CONVOLUTIONAL[type(m)]) for m in backbone.modules() if type(m) in CONVOLUTIONAL]


def recompute_blocks(backbone: Backbone, enabled: bool) -> None:
    """Compute the activations inside blocks again in the backward pass, instead of keeping them for it.

    Args:
        backbone: A network of timm or transformers.
        enabled: Whether to do so; False keeps activations again.

    Raises:
        ValueError: If its library cannot do this in the network.
    """
    if hasattr(backbone, "gradient_checkpointing_enable"):
        if enabled:
            backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            backbone.gradient_checkpointing_disable()
        return
    try:
        backbone.set_grad_checkpointing(enabled)
    except (AttributeError, AssertionError) as error:
        raise ValueError(
            f"checkpoint_activations: timm cannot compute blocks of {type(backbone).__name__} again in the backward "
            "pass; leave it out, or use a network such as a ViT, Swin, ConvNeXt or ResNet"
        ) from error


def has(module: nn.Module, children: tuple[str, ...]) -> bool:
    """Whether a module has all these children."""
    return all(module._modules.get(child) is not None for child in children)


def final_norm(block: Any) -> Any:
    """Norm of the MLP of a transformer block, as wide as the block; None if it has no weight."""
    norms = (getattr(block, "norm2", None), getattr(block.mlp, "norm", None))
    return next((norm for norm in norms if getattr(norm, "weight", None) is not None), None)


def width(block: Any) -> int:
    """Channels of the residual stream that leaves a transformer block."""
    return len(final_norm(block).weight)


def channels_first(block: Any, child: str = "mlp") -> bool:
    """Whether features of a block are maps (B, C, H, W) instead of (B, ..., C).

    Args:
        block: Transformer block.
        child: Name of the child with this output; empty for the block itself.
    """
    if not child and isinstance(block, MAPS_OUTSIDE):
        return True
    return isinstance(final_norm(block), CHANNELS_FIRST)


def layers_named(module: nn.Module, names: tuple[str, ...]) -> list[Any]:
    """Linear layers and convolutions among the children of a module that have one of the names."""
    return [m for name, m in module.named_children() if name in names and isinstance(m, (nn.Linear, nn.Conv2d))]


def branch_outputs(block: Any) -> list[Any]:
    """Last layer of the attention and last layer of the MLP of a transformer block, if they have known names."""
    return layers_named(block.attn, ATTENTION_OUTPUTS)[-1:] + layers_named(block.mlp, MLP_OUTPUTS)[-1:]
