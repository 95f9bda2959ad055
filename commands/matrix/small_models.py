"""Small models for families of which timm has no small one: its functions there take no widths or depths.

Importing this file registers them, then ``timm.create_model("small_focalnet")`` works as for any other model.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

from timm.models import (
    byoanet,
    cspnet,
    focalnet,
    gcvit,
    hardcorenas,
    metaformer,
    mlp_mixer,
    mobilenetv3,
    mobilenetv5,
    mobilevit,
    mvitv2,
    nest,
    register_model,
    resnetv2,
    vitamin,
    volo,
)
from timm.models._builder import build_model_with_cfg
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.byobnet import ByoBlockCfg
from timm.models.convmixer import ConvMixer
from timm.models.ghostnet import GhostNet
from timm.models.hgnet import HighPerfGpuNet
from timm.models.repghost import RepGhostNet
from timm.models.selecsls import SelecSls, SelecSlsBlock
from timm.models.vgg import VGG
from torch import nn

FOUR = (1, 1, 1, 1)
MIXER = {"num_blocks": 2, "embed_dim": 48, "img_size": 64, "patch_size": 16}
METAFORMER = {"depths": FOUR, "dims": (16, 24, 32, 48)}
NEST = {"embed_dims": (16, 32, 48), "num_heads": (1, 2, 3), "depths": (1, 1, 2), "img_size": 32}
# kernel, expansion, channels, share of squeeze and excitation, stride of a block
GHOST = [[[3, 16, 16, 0, 1]], [[3, 48, 24, 0, 2]], [[5, 72, 40, 0.25, 2]], [[5, 120, 40, 0.25, 1]]]
# inverted residuals and multi-query attention, with keys and values of full and of half resolution
MOBILENET = [
    ["er_r1_k3_s2_e4_c16"],
    ["uir_r1_a3_k5_s2_e2_c16", "uir_r1_a3_k0_s1_e2_c16"],
    ["uir_r1_a5_k5_s2_e2_c32", "mqa_r1_k3_h2_v2_s1_d16_c32", "uir_r1_a0_k0_s1_e2_c32"],
    ["uir_r1_a5_k5_s2_e2_c48", "mqa_r1_k3_h2_s1_d16_c48", "uir_r1_a0_k0_s1_e2_c48"],
]
INVERTED = {"bottle_in": True, "linear_out": True}


def inverted(channels: int, stride: int) -> ByoBlockCfg:
    """Inverted residual of MobileViT."""
    return ByoBlockCfg(type="bottle", d=1, c=channels, s=stride, gs=1, br=2.0, block_kwargs=INVERTED)


def mobilevit_blocks(block: ByoBlockCfg) -> dict[str, Any]:
    """Two stages of inverted residuals, and one that ends with a transformer block."""
    return {"blocks": (inverted(16, 1), inverted(16, 2), (inverted(16, 2), block)), "stem_chs": 16, "num_features": 32}


def byoanet_blocks(size: int) -> dict[str, Any]:
    """One stage of convolutions and one with self-attention, for an input of ``size`` pixels."""
    blocks = (
        ByoBlockCfg(type="bottle", d=1, c=32, s=1, gs=0, br=0.25),
        ByoBlockCfg(type="self_attn", d=2, c=64, s=2, gs=0, br=0.5),
    )
    return {"blocks": blocks, "stem_chs": 16, "img_size": size}


def register(name: str, create: Callable[..., nn.Module], variant: str, **small: Any) -> None:
    """Register the model ``variant`` of timm with the arguments ``small`` under a new name.

    Args:
        name: New name.
        create: Function of timm that builds a network from the name of a variant and arguments of its class.
        variant: Name of the model whose pretrained configuration (mean, names of the classifier) is used.
        small: Arguments of the class that make the network small.
    """

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        # a copy, because timm changes the arguments of blocks
        return create(variant, pretrained=pretrained, **{**deepcopy(small), **kwargs})

    entrypoint.__name__ = name
    register_model(entrypoint)


def built(cls: type[nn.Module]) -> Callable[..., nn.Module]:
    """Function that builds a class of timm from the name of a variant."""
    return partial(build_model_with_cfg, cls)


register("small_botnet", byoanet._create_byoanet, "botnet26t_256", cfg_variant="botnet26t", **byoanet_blocks(32))
register("small_halonet", byoanet._create_byoanet, "halonet26t", **byoanet_blocks(64))
register("small_lambda_resnet", byoanet._create_byoanet, "lambda_resnet26t", **byoanet_blocks(32))
register("small_convmixer", built(ConvMixer), "convmixer_768_32", dim=32, depth=2, kernel_size=7)
register(
    "small_cs3darknet",
    cspnet._create_cspnet,
    "cs3darknet_focus_s",
    stem=cspnet.CspStemCfg(out_chs=16, kernel_size=6, padding=2),
    stages=replace(cspnet.model_cfgs["cs3darknet_focus_s"].stages, depth=FOUR, out_chs=(16, 24, 32, 48)),
)
register("small_focalnet", focalnet._create_focalnet, "focalnet_tiny_srf", depths=FOUR, embed_dim=16)
register(
    "small_gcvit",
    gcvit._create_gcvit,
    "gcvit_xxtiny",
    depths=(2, 2, 2, 2),
    num_heads=(1, 2, 4, 8),
    embed_dim=8,
    img_size=64,
    window_size=(4, 4, 4, 2),
)
register("small_ghostnet", built(GhostNet), "ghostnet_050", cfgs=GHOST, width=0.5)
register("small_repghostnet", built(RepGhostNet), "repghostnet_050", cfgs=GHOST, width=0.5)
register(
    "small_hardcorenas",
    lambda variant, pretrained, **args: hardcorenas._gen_hardcorenas(pretrained, variant, **args),
    "hardcorenas_a",
    arch_def=[
        ["ds_r1_k3_s1_e1_c16_nre"],
        ["ir_r1_k5_s2_e3_c24_nre_se0.25"],
        ["ir_r2_k5_s2_e3_c32_se0.25"],
        ["cn_r1_k1_s1_c64"],
    ],
)
register(
    "small_hgnet",
    built(HighPerfGpuNet),
    "hgnetv2_b0",
    head_hidden_size=64,
    use_lab=True,
    model_cfg={
        "stem_type": "v2",
        "stem_chs": [8, 8],
        "stage1": [8, 8, 16, 1, False, False, 3, 2],
        "stage2": [16, 8, 32, 1, True, False, 3, 2],
        "stage3": [32, 16, 48, 2, True, True, 5, 2],
        "stage4": [48, 16, 64, 1, True, True, 5, 2],
    },
)
register(
    "small_poolformer",
    metaformer._create_metaformer,
    "poolformer_s12",
    downsample_norm=None,
    mlp_act=nn.GELU,
    mlp_bias=True,
    norm_layers=metaformer.GroupNorm1,
    layer_scale_init_values=1e-5,
    res_scale_init_values=None,
    use_mlp_head=False,
    **METAFORMER,
)
register(
    "small_caformer",
    metaformer._create_metaformer,
    "caformer_s18",
    token_mixers=[metaformer.SepConv] * 2 + [metaformer.Attention] * 2,
    norm_layers=[metaformer.LayerNorm2dNoBias] * 2 + [metaformer.LayerNormNoBias] * 2,
    **METAFORMER | {"dims": (16, 24, 32, 64)},
)
register("small_mixer", mlp_mixer._create_mixer, "mixer_s16_224", **MIXER)
register(
    "small_gmlp",
    mlp_mixer._create_mixer,
    "gmlp_s16_224",
    mlp_ratio=6,
    block_layer=mlp_mixer.SpatialGatingBlock,
    mlp_layer=mlp_mixer.GatedMlp,
    **MIXER,
)
register(
    "small_resmlp",
    mlp_mixer._create_mixer,
    "resmlp_12_224",
    mlp_ratio=4,
    block_layer=mlp_mixer.ResBlock,
    norm_layer=mlp_mixer.Affine,
    **MIXER,
)
register(
    "small_mobilenetv4",
    mobilenetv3._create_mnv3,
    "mobilenetv4_hybrid_medium",
    block_args=decode_arch_def(MOBILENET),
    stem_size=16,
    num_features=64,
    head_bias=False,
    head_norm=True,
    layer_scale_init_value=1e-5,
)
register(
    "small_mobilenetv5",
    mobilenetv5._gen_mobilenet_v5,
    "mobilenetv5_base",
    block_args=decode_arch_def(MOBILENET),
    stem_size=16,
    num_features=64,
    msfa_output_resolution=4,
)
register(
    "small_mobilevit",
    mobilevit._create_mobilevit,
    "mobilevit_xxs",
    **mobilevit_blocks(
        ByoBlockCfg(
            type="mobilevit",
            d=1,
            c=16,
            s=1,
            block_kwargs={"transformer_dim": 16, "transformer_depth": 2, "patch_size": 2},
        )
    ),
)
register(
    "small_mobilevitv2",
    mobilevit._create_mobilevit2,
    "mobilevitv2_050",
    **mobilevit_blocks(
        ByoBlockCfg(
            type="mobilevit2", d=1, c=16, s=1, br=0.5, gs=1, block_kwargs={"transformer_depth": 2, "patch_size": 2}
        )
    ),
)
register(
    "small_mvitv2",
    built(mvitv2.MultiScaleVit),
    "mvitv2_tiny",
    model_cfg=mvitv2.MultiScaleVitCfg(depths=(1, 1, 2, 1), embed_dim=16),
    img_size=64,
)
register("small_nest", nest._create_nest, "nest_tiny", **NEST)
register(
    "small_resnetv2_bit",
    resnetv2._create_resnetv2_bit,
    "resnetv2_50x1_bit",
    layers=FOUR,
    channels=(128, 128, 128, 128),
    stem_chs=32,
)
register(
    "small_selecsls",
    built(SelecSls),
    "selecsls42",
    model_cfg={
        "block": SelecSlsBlock,
        # channels: input, skip, middle, output; whether the block is the first of its stage; stride
        "features": [(32, 0, 16, 32, True, 2), (32, 32, 16, 32, False, 1), (32, 0, 16, 48, True, 2)],
        "head": [(48, 64, 3, 2), (64, 64, 1, 1)],
        "num_features": 64,
        "feature_info": [],
    },
)
register(
    "small_vgg",
    built(VGG),
    "vgg11_bn",
    model_cfg=[8, "M", 16, "M"],
    norm_layer=nn.BatchNorm2d,
    mlp_ratio=1 / 64,
)
register(
    "small_vitamin",
    vitamin._create_vitamin,
    "vitamin_small_224",
    embed_dim=48,
    depth=2,
    num_heads=3,
    mlp_layer=vitamin.GeGluMlp,
    mlp_ratio=2.0,
    class_token=False,
    global_pool="avg",
    img_size=32,
    embed_cfg=vitamin.VitCfg(
        embed_dim=(16, 24, 48),
        depths=(1, 2, 1),
        stem_width=16,
        conv_cfg=vitamin.VitConvCfg(norm_layer="layernorm2d", norm_eps=1e-6),
        head_type="1d",
    ),
)
register(
    "small_volo",
    volo._create_volo,
    "volo_d1_224",
    layers=FOUR,
    embed_dims=(16, 32, 32, 32),
    num_heads=(1, 2, 2, 2),
    stem_hidden_dim=16,
    img_size=32,
)
