"""One small member of every timm family, with random weights.

A family is a module of timm. A second member of the same module stands as ``module/variant``. The arguments keep
every kind of layer of the family and make the network narrow and shallow.
"""

from typing import Any, NamedTuple

import timm
import torch
from torch import nn

from commands.methods import small_models  # noqa: F401  (registers them)
from commands.methods.randomize import randomize


class Family(NamedTuple):
    """A small network: its name in timm, further arguments of ``timm.create_model``, side of its input in pixels."""

    model: str
    args: dict[str, Any]
    size: int
    slow: bool = False


VIT = {"embed_dim": 48, "depth": 2, "num_heads": 3}
SWIN = {"embed_dim": 16, "depths": (2, 2), "num_heads": (1, 2)}
FOUR = (1, 1, 1, 1)

HRNET = {
    "stem_width": 16,
    **{
        f"stage{stage}": {
            "num_modules": 1,
            "num_branches": stage,
            "block_type": "BOTTLENECK" if stage == 1 else "BASIC",
            "num_blocks": (1,) * stage,
            "num_channels": (8,) * stage,
            "fuse_method": "SUM",
        }
        for stage in (1, 2, 3, 4)
    },
}
XCEPTION = [
    {"in_chs": 64, "out_chs": 32, "stride": 2},
    {"in_chs": 32, "out_chs": 32, "stride": 1},
    {"in_chs": 32, "out_chs": (32, 48, 48), "stride": 2},
    {"in_chs": 48, "out_chs": (48, 48, 64), "stride": 1, "no_skip": True, "start_with_relu": False},
]

FAMILIES: dict[str, Family] = {
    "beit": Family("beit_base_patch16_224", {**VIT, "img_size": 32}, 32),
    "byoanet": Family("small_botnet", {}, 32),
    "byoanet/halonet": Family("small_halonet", {}, 64),
    "byoanet/lambda": Family("small_lambda_resnet", {}, 32),
    "byobnet": Family("test_byobnet", {}, 32),
    "cait": Family("cait_xxs24_224", {**VIT, "img_size": 32, "init_values": 0.5}, 32),
    "coat": Family(
        "coat_mini",
        {"embed_dims": (16, 24, 24, 24), "serial_depths": FOUR, "parallel_depth": 1, "num_heads": 8, "img_size": 64},
        64,
        slow=True,
    ),
    "convit": Family(
        "convit_tiny", {"embed_dim": 8, "num_heads": 4, "depth": 2, "local_up_to_layer": 1, "img_size": 32}, 32
    ),
    "convmixer": Family("small_convmixer", {}, 28),
    "convnext": Family("test_convnext", {}, 32),
    "cpubone": Family(
        "cpubone_b0_bfrobust",
        {"width_list": [8, 8, 16, 16, 32], "depth_list": [0, 1, 1, 1, 1], "head_widths": (32, 32)},
        64,
    ),
    "crossvit": Family(
        "crossvit_9_dagger_240",
        {
            "img_size": 48,
            "img_scale": (1.0, 1.0),
            "embed_dim": (16, 32),
            "depth": ((1, 2, 0), (1, 1, 0)),
            "num_heads": (2, 2),
        },
        48,
        slow=True,
    ),
    "csatv2": Family(
        "csatv2", {"dims": (16, 24, 32, 48), "depths": (1, 1, 2, 2), "transformer_depths": (0, 0, 1, 1)}, 64
    ),
    "cspnet": Family("small_cs3darknet", {}, 32),
    "cspnext": Family("cspnext_tiny", {"widen_factor": 0.125, "deepen_factor": 0.17}, 32),
    "davit": Family(
        "davit_tiny", {"depths": FOUR, "embed_dims": (16, 16, 32, 32), "num_heads": (1, 1, 2, 2), "window_size": 2}, 32
    ),
    "deepseek_vit": Family("deepseek_vit_412m", {**VIT, "img_size": 84}, 84),
    "deit": Family("deit_tiny_distilled_patch16_224", {**VIT, "img_size": 32}, 32),
    "densenet": Family("densenet121", {"growth_rate": 8, "block_config": (2, 2, 2, 2)}, 32),
    "dla": Family("dla34", {"channels": (8, 8, 16, 16, 32, 32)}, 32),
    "dpn": Family("dpn48b", {"k_r": 32, "groups": 8, "k_sec": (1, 1, 1, 1), "inc_sec": (8, 8, 8, 8)}, 32),
    "edgenext": Family(
        "edgenext_xx_small", {"dims": (16, 24, 32, 48), "depths": (1, 2, 2, 2), "heads": (2, 2, 2, 2)}, 64
    ),
    "efficientformer": Family("efficientformer_l1", {"depths": (1, 1, 1, 2), "embed_dims": (16, 24, 32, 48)}, 224),
    "efficientformer_v2": Family(
        "efficientformerv2_s0",
        {
            "img_size": 64,
            "depths": (1, 1, 2, 2),
            "embed_dims": (16, 24, 32, 48),
            "num_vit": 1,
            "mlp_ratios": ((2,), (2,), (2, 2), (2, 2)),
        },
        64,
        slow=True,
    ),
    "efficientnet": Family("test_efficientnet", {}, 32),
    "efficientnet/mobilenetv2": Family("mobilenetv2_035", {}, 32, slow=True),
    "efficientvim": Family("efficientvim_m1", {"embed_dim": (16, 24, 32), "depths": FOUR[:3]}, 64, slow=True),
    "efficientvit_mit": Family(
        "efficientvit_b0",
        {"widths": (8, 8, 16, 16, 32), "depths": (1, 1, 1, 1, 1), "head_dim": 8, "head_widths": (32, 32)},
        64,
        slow=True,
    ),
    "efficientvit_msra": Family(
        "efficientvit_m0", {"img_size": 128, "embed_dim": (16, 32, 48), "depth": (1, 1, 1), "num_heads": (2, 2, 2)}, 128
    ),
    "eva/eva02": Family("eva02_base_patch14_224", {**VIT, "img_size": 28}, 28),
    "eva": Family("eva_giant_patch14_224", {**VIT, "img_size": 28}, 28),
    "eva/dinov3": Family("vit_small_patch16_dinov3", {**VIT, "img_size": 32}, 32),
    "fasternet": Family("fasternet_t0", {"embed_dim": 16, "depths": FOUR, "feature_dim": 64}, 32),
    "fastvit": Family("fastvit_ma36", {"layers": FOUR, "embed_dims": (16, 16, 32, 64)}, 64, slow=True),
    "focalnet": Family("small_focalnet", {}, 32),
    "gcvit": Family("small_gcvit", {}, 64, slow=True),
    "gemma4_vit": Family(
        "gemma4_vit_167m",
        {**VIT, "head_dim": 16, "intermediate_size": 96, "position_embedding_size": 64, "img_size": 48},
        48,
        slow=True,
    ),
    "ghostnet": Family("small_ghostnet", {}, 32),
    "hardcorenas": Family("small_hardcorenas", {}, 32),
    "hgnet": Family("small_hgnet", {}, 32),
    "hiera": Family(
        "hiera_tiny_224",
        {"img_size": 64, "embed_dim": 16, "stages": (1, 1, 2, 1), "mask_unit_size": (4, 4), "q_pool": 2},
        64,
    ),
    "hieradet_sam2": Family(
        "sam2_hiera_tiny",
        {"embed_dim": 16, "stages": (1, 1, 2, 1), "global_att_blocks": (3,), "window_spec": (4, 2, 2, 1)},
        64,
        slow=True,
    ),
    "hrnet": Family("hrnet_w18_small", HRNET, 32, slow=True),
    "iformer": Family("iformer_t", {"dims": (16, 24, 32, 48), "depths": (1, 1, 4, 4), "attn_groups": (0, 0, 1, 1)}, 64),
    "inception_next": Family("inception_next_atto", {"depths": FOUR, "dims": (16, 24, 32, 48)}, 32),
    "inception_resnet_v2": Family("inception_resnet_v2", {}, 96, slow=True),
    "inception_v3": Family("inception_v3", {}, 96, slow=True),
    "inception_v4": Family("inception_v4", {}, 96, slow=True),
    "lcnetv2": Family("lcnetv2_small", {"scale": 0.25, "depths": FOUR, "head_hidden_size": 64}, 32),
    "levit": Family(
        "levit_128s",
        {"img_size": 128, "embed_dim": (16, 24, 32), "key_dim": 8, "num_heads": (2, 2, 2), "depth": (1, 1, 1)},
        128,
    ),
    "lowformer": Family(
        "lowformer_b0", {"width_list": [8, 8, 16, 16, 32], "depth_list": [0, 1, 1, 1, 1], "head_widths": (32, 32)}, 64
    ),
    "mambaout": Family("test_mambaout", {}, 32),
    "maxxvit": Family("test_maxvit", {"img_size": 64, "embed_dim": (16, 16, 32, 32), "transformer_dim_head": 8}, 64),
    "maxxvit/coatnet": Family(
        "test_coatnet", {"img_size": 64, "embed_dim": (16, 16, 32, 32), "transformer_dim_head": 8}, 64
    ),
    "metaformer": Family("small_poolformer", {}, 64),
    "metaformer/caformer": Family("small_caformer", {}, 32),
    "mlp_mixer": Family("small_mixer", {}, 64),
    "mlp_mixer/gmlp": Family("small_gmlp", {}, 64),
    "mlp_mixer/resmlp": Family("small_resmlp", {}, 64),
    "mobilenetv3": Family("mobilenetv3_small_050", {}, 32),
    "mobilenetv3/mobilenetv4": Family("small_mobilenetv4", {}, 64),
    "mobilenetv5": Family("small_mobilenetv5", {}, 64),
    "mobilevit": Family("small_mobilevit", {}, 32),
    "mobilevit/v2": Family("small_mobilevitv2", {}, 32),
    "mvitv2": Family("small_mvitv2", {}, 64),
    "naflexvit": Family("naflexvit_base_patch16_gap", VIT, 32),
    "nasnet": Family("nasnetalarge", {"stem_size": 8, "num_features": 192}, 64, slow=True),
    "nest": Family("small_nest", {}, 32),
    "nextvit": Family("nextvit_small", {"depths": (1, 2, 5, 1), "stem_chs": (16, 16, 16)}, 64, slow=True),
    "nfnet": Family("test_nfnet", {}, 32),
    "pit": Family(
        "pit_ti_distilled_224", {"img_size": 64, "base_dims": (16, 16, 16), "depth": (1, 1, 1), "heads": (1, 2, 4)}, 64
    ),
    "pnasnet": Family("pnasnet5large", {}, 64, slow=True),
    "pvt_v2": Family("pvt_v2_b0", {"depths": FOUR, "embed_dims": (16, 16, 32, 32), "num_heads": (1, 1, 2, 2)}, 64),
    "qwen3_vit": Family("qwen3_vit_88m", {**VIT, "pos_embed_grid_size": 4, "img_size": 64}, 64),
    "rdnet": Family(
        "rdnet_tiny",
        {
            "num_init_features": 16,
            "growth_rates": (16,) * 4,
            "num_blocks_list": FOUR,
            "is_downsample_block": (None, True, True, True),
            "block_type": ("Block", "Block", "BlockESE", "BlockESE"),
        },
        32,
    ),
    "regnet": Family(
        "regnety_002", {"depth": 4, "w0": 32, "wa": 24.0, "wm": 1.5, "group_size": 8, "stem_width": 16}, 32
    ),
    "repghost": Family("small_repghostnet", {}, 32),
    "repvit": Family("repvit_m0_9", {"embed_dim": (16, 24, 32, 48), "depth": FOUR}, 32),
    "res2net": Family("res2net50_14w_8s", {"layers": FOUR, "channels": (16, 16, 16, 16)}, 32),
    "resnest": Family("resnest14d", {"stem_width": 8, "channels": (8, 8, 16, 16)}, 32),
    "resnet": Family("test_resnet", {}, 32),
    "resnetv2": Family("resnetv2_50", {"layers": FOUR, "channels": (16, 32, 32, 64), "stem_chs": 16}, 32),
    "resnetv2/bit": Family("small_resnetv2_bit", {}, 32),
    "rexnet": Family("rexnet_100", {"initial_chs": 8, "final_chs": 32, "depth_mult": 0.5}, 32),
    "selecsls": Family("small_selecsls", {}, 32),
    "senet": Family("legacy_seresnet18", {"layers": FOUR}, 32),
    "sequencer": Family(
        "sequencer2d_s",
        {"img_size": 56, "layers": FOUR, "embed_dims": (16, 32, 32, 32), "hidden_sizes": (4, 8, 8, 8)},
        56,
        slow=True,
    ),
    "shvit": Family(
        "shvit_s1", {"embed_dim": (16, 24, 32), "partial_dim": (8, 8, 8), "qk_dim": (4, 4, 4), "depth": (1, 1, 1)}, 64
    ),
    "sknet": Family("skresnet18", {"layers": FOUR, "channels": (16, 16, 32, 32), "stem_width": 8}, 32),
    "starnet": Family("starnet_s050", {"depths": FOUR, "base_dim": 8}, 32),
    "swiftformer": Family("swiftformer_xs", {"layers": FOUR, "embed_dims": (16, 24, 32, 48)}, 64),
    "swin_transformer": Family("swin_tiny_patch4_window7_224", {**SWIN, "img_size": 32, "window_size": 4}, 32),
    "swin_transformer_v2": Family("swinv2_tiny_window8_256", {**SWIN, "img_size": 32, "window_size": 4}, 32),
    "swin_transformer_v2_cr": Family("swinv2_cr_tiny_224", {**SWIN, "img_size": 32, "window_size": 4}, 32),
    "tiny_vit": Family(
        "tiny_vit_5m_224",
        {"embed_dims": (16, 16, 32, 32), "depths": FOUR, "num_heads": (1, 1, 2, 2), "window_sizes": (2, 2, 2, 2)},
        64,
    ),
    "tnt": Family(
        "tnt_s_patch16_224",
        {"img_size": 32, "embed_dim": 48, "inner_dim": 8, "depth": 2, "num_heads_outer": 3, "num_heads_inner": 2},
        32,
    ),
    "tresnet": Family("tresnet_m", {"layers": FOUR, "width_factor": 0.25}, 64),
    "twins": Family(
        "twins_svt_small",
        {
            "img_size": 64,
            "embed_dims": (16, 16, 32, 32),
            "num_heads": (1, 1, 2, 2),
            "depths": (2, 2, 2, 2),
            "wss": (4, 4, 2, 2),
        },
        64,
    ),
    "vgg": Family("small_vgg", {}, 56),
    "visformer": Family(
        "visformer_tiny", {"img_size": 32, "init_channels": 8, "embed_dim": 48, "depth": FOUR[:3], "num_heads": 3}, 32
    ),
    "vision_transformer": Family("vit_tiny_patch16_224", {**VIT, "img_size": 32}, 32),
    "vision_transformer/dinov2": Family("vit_small_patch14_reg4_dinov2", {**VIT, "img_size": 28}, 28),
    "vision_transformer/siglip": Family("vit_base_patch16_siglip_224", {**VIT, "img_size": 32}, 32),
    "vision_transformer/clip": Family("vit_base_patch16_clip_quickgelu_224", {**VIT, "img_size": 32}, 32),
    "vision_transformer_hybrid": Family("vit_tiny_r_s16_p8_224", {**VIT, "img_size": 64}, 64),
    "vision_transformer_relpos": Family("test_vit_relpos", {**VIT, "img_size": 32}, 32),
    "vision_transformer_sam": Family(
        "samvit_base_patch16_224",
        {**VIT, "img_size": 64, "window_size": 2, "global_attn_indexes": (1,), "neck_chans": 16},
        64,
    ),
    "vitamin": Family("small_vitamin", {}, 32),
    "volo": Family("small_volo", {}, 32),
    "vovnet": Family(
        "ese_vovnet19b_slim_dw",
        {"stem_chs": (16, 16, 16), "stage_conv_chs": (16, 16, 16, 16), "stage_out_chs": (16, 24, 32, 48)},
        32,
    ),
    "xception": Family("legacy_xception", {}, 64, slow=True),
    "xception_aligned": Family("xception41", {"block_cfg": XCEPTION}, 32),
    "xcit": Family("xcit_nano_12_p16_224", {**VIT, "img_size": 32}, 32),
}


def build(name: str) -> nn.Module:
    """Network of a family with 3 classes, fp32, in eval mode; the seed of its weights is fixed."""
    family = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(family.model, num_classes=3, **family.args).eval()


def network(name: str) -> nn.Module:
    """Network of a family with values as far from zero as trained ones; see ``randomize``."""
    return randomize(build(name), FAMILIES[name].size)
