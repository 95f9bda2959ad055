"""Queries, keys and values of attention: the rows of layers that compute them, in every family."""

from typing import Any

import torch
from timm.layers.attention2d import Attention2d
from timm.layers.attention_pool import AttentionPoolLatent
from timm.layers.attention_pool2d import AttentionPool2d, RotAttentionPool2d
from timm.layers.bottleneck_attn import BottleneckAttn
from timm.layers.halo_attn import HaloAttn
from timm.layers.lambda_layer import LambdaLayer
from timm.layers.other_pool import SimPool1d, SimPool2d
from timm.models import cpubone, efficientformer, levit, lowformer, maxxvit, tiny_vit
from timm.models.efficientvit_mit import LiteMLA
from timm.models.efficientvit_msra import CascadedGroupAttention
from timm.models.gcvit import WindowAttentionGlobal
from timm.models.mobilevit import LinearSelfAttention
from timm.models.shvit import SHSA
from timm.models.vision_transformer import DiffParallelScalingBlock, ParallelScalingBlock
from torch import Tensor, nn

from backbones.inject import Backbone

FUSED = ("q", "k", "v")
PARTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("qkv", "qkv_proj", "qkvs", "c_attn"), FUSED),
    **dict.fromkeys(("q", "q_proj", "wq", "query", "to_query"), ("q",)),
    **dict.fromkeys(("k", "k_proj", "wk", "key", "to_key"), ("k",)),
    **dict.fromkeys(("v", "v_proj", "wv", "value"), ("v",)),
    "kv": ("k", "v"),
    "qk": ("q", "k"),
    "v_gate": ("v", "gate"),
}
"""Parts of the output of a layer, by its name in an attention module, in the order of their rows."""

POOLS = (AttentionPoolLatent, AttentionPool2d, RotAttentionPool2d, SimPool1d, SimPool2d)  # part of a head
KEY_VALUE = (levit.Attention, levit.AttentionDownsample, efficientformer.Attention, tiny_vit.Attention)
HEAD_FIRST = (Attention2d, maxxvit.Attention2d, maxxvit.AttentionCl)
CONV_ATTENTION = (cpubone.ConvAttention, lowformer.ConvAttention)
PARALLEL = (ParallelScalingBlock, DiffParallelScalingBlock)


def attention_rows(backbone: Backbone) -> dict[str, dict[str, Tensor]]:
    """Rows of the weight that compute queries, keys and values, by the name of the layer and by ``q``, ``k``, ``v``.

    A part of one row is left out, and so is attention that pools tokens for the classifier.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for path, attention in backbone.named_modules():
        if isinstance(attention, POOLS):
            continue
        for name, child in attention.named_children():
            for below, module in child.named_children() if name == "qkvs" else [("", child)]:
                place = ".".join(word for word in (path, name, below) if word)
                for layer, weight in last_layer(place, module).items():
                    rows = rows_of(attention, name, len(weight))
                    if rows:
                        found[layer] = rows
    return found


def last_layer(place: str, module: nn.Module) -> dict[str, Tensor]:
    """Weight of the last linear layer or convolution in a module by its name, such as ``q.proj.conv``."""
    layers = [
        (f"{place}.{name}".removesuffix("."), layer.weight)
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
    ]
    return dict(layers[-1:])


def rows_of(attention: Any, name: str, outputs: int) -> dict[str, Tensor]:
    """Rows of q, k and v in a layer of an attention module; empty for other layers."""
    heads, sizes = split(attention, name, outputs)
    if heads * sum(size for _, size in sizes) != outputs:
        return {}
    numbers = torch.arange(outputs, device="cpu")  # because they are read, which waits for a GPU
    parts = numbers.view(heads, -1).split([size for _, size in sizes], dim=1)
    rows = {part: numbers.flatten() for (part, _), numbers in zip(sizes, parts, strict=True)}
    return {part: numbers for part, numbers in rows.items() if part in FUSED and len(numbers) > 1}


def split(attention: Any, name: str, outputs: int) -> tuple[int, list[tuple[str, int]]]:
    """Heads whose rows lie one after another, and the parts with their sizes in one of them.

    Most families have one such group, with equal parts: they view the output of ``qkv`` as (3, heads, channels).
    """
    parts = PARTS.get(name, ())
    if isinstance(attention, CONV_ATTENTION) and name == "pwise":
        return attention.num_heads, [(part, attention.head_dim) for part in FUSED]
    if isinstance(attention, PARALLEL) and name == "in_proj":
        return 1, list(zip(("mlp", *FUSED), attention.in_split, strict=True))
    if isinstance(attention, WindowAttentionGlobal) and attention.use_global and name == "qkv":
        parts = ("k", "v")  # q is common to all blocks of a stage
    if isinstance(attention, KEY_VALUE) and parts:
        channels = {"q": attention.key_dim, "k": attention.key_dim, "v": attention.val_dim}
        return attention.num_heads, [(part, channels[part]) for part in parts]
    if isinstance(attention, HEAD_FIRST) and parts == FUSED and attention.head_first:
        return attention.num_heads, [(part, attention.dim_head) for part in parts]
    if isinstance(attention, LiteMLA) and parts == FUSED:
        return outputs // (3 * attention.dim), [(part, attention.dim) for part in parts]
    if isinstance(attention, HaloAttn) and parts == ("k", "v"):
        return attention.num_heads, [("k", attention.dim_head_qk), ("v", attention.dim_head_v)]
    if parts == FUSED:
        return 1, list(zip(parts, fused_sizes(attention, outputs), strict=True))
    return 1, [(part, outputs // len(parts)) for part in parts]


def fused_sizes(attention: Any, outputs: int) -> list[int]:
    """Sizes of q, k and v where one layer computes them without heads one after another."""
    if isinstance(attention, CascadedGroupAttention):
        return [attention.key_dim, attention.key_dim, attention.val_dim]
    if isinstance(attention, SHSA):
        return [attention.qk_dim, attention.qk_dim, attention.pdim]
    if isinstance(attention, LinearSelfAttention):
        return [1, attention.embed_dim, attention.embed_dim]
    if isinstance(attention, BottleneckAttn):
        return [attention.dim_out_qk, attention.dim_out_qk, attention.dim_out_v]
    if isinstance(attention, LambdaLayer):
        return [attention.num_heads * attention.dim_qk, attention.dim_qk, attention.dim_v]
    if hasattr(attention, "num_key_value_groups"):  # several heads of queries share one of keys and values
        groups = attention.num_key_value_groups
        shared = outputs // (groups + 2)
        return [groups * shared, shared, shared]
    return [outputs // 3] * 3
