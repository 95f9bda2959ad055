"""Conversion of packaged weights to timm's names, on random weights."""

import re
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor
from torchvision.models import mobilenet_v2

from backbones.packaged import PACKAGED, tiny_vit_name, to_timm

# names in MobileSAM's file and in timm
TINY_VIT_NAMES = {
    "patch_embed.seq.0.c.weight": "patch_embed.conv1.conv.weight",
    "patch_embed.seq.2.bn.running_var": "patch_embed.conv2.bn.running_var",
    "layers.0.blocks.1.conv3.c.weight": "stages.0.blocks.1.conv3.conv.weight",
    "layers.0.downsample.conv1.c.weight": "stages.1.downsample.conv1.conv.weight",
    "layers.2.downsample.conv3.bn.bias": "stages.3.downsample.conv3.bn.bias",
    "layers.3.blocks.1.attn.attention_biases": "stages.3.blocks.1.attn.attention_biases",
    "layers.3.blocks.1.local_conv.c.weight": "stages.3.blocks.1.local_conv.conv.weight",
    "layers.1.blocks.0.mlp.fc2.bias": "stages.1.blocks.0.mlp.fc2.bias",
    "norm_head.weight": "head.norm.weight",
    "head.bias": "head.fc.bias",
}


def mobilenet() -> dict[str, Tensor]:
    """State of torchvision's network with statistics and affine parameters that no two channels share."""
    torch.manual_seed(0)
    state: dict[str, Tensor] = mobilenet_v2(weights=None).state_dict()
    return {name: torch.rand_like(t) + 0.5 if t.dim() == 1 else t for name, t in state.items()}


def mobile_sam() -> dict[str, Tensor]:
    """State with the names of MobileSAM: the encoder of random weights, and parts that are left out."""
    torch.manual_seed(0)
    state = {f"image_encoder.{original(n)}": t for n, t in timm.create_model("tiny_vit_5m_224").state_dict().items()}
    state["image_encoder.head.weight"], state["image_encoder.head.bias"] = torch.rand(1000, 320), torch.rand(1000)
    outside = (
        "image_encoder.neck.0.weight",
        "prompt_encoder.not_a_point_embed.weight",
        "mask_decoder.iou_token.weight",
    )
    index = "image_encoder.layers.1.blocks.0.attn.attention_bias_idxs"
    return state | {name: torch.rand(2) for name in (*outside, index)}


def original(name: str) -> str:
    """Name in MobileSAM of a tensor of timm's TinyViT."""
    name = re.sub(r"^stages\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)
    name = name.replace("stages.", "layers.").replace("head.norm.", "norm_head.").replace("head.fc.", "head.")
    name = re.sub(r"^patch_embed\.conv(\d)", lambda m: f"patch_embed.seq.{2 * int(m[1]) - 2}", name)
    return name.replace(".conv.weight", ".c.weight")


def test_mobilenet_computes_what_torchvision_computes() -> None:
    state = mobilenet()
    reference = mobilenet_v2(weights=None)
    reference.load_state_dict(state)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = reference.eval()(images)
        assert torch.equal(to_timm(state, PACKAGED["mobilenetv2_100"]).eval()(images), expected)


def test_efficientnet_by_position() -> None:
    packaged = PACKAGED["efficientnet_lite0"]
    plain = timm.create_model(packaged.architecture).state_dict()
    state = {f"_{number}.{name.rpartition('.')[2]}": tensor for number, (name, tensor) in enumerate(plain.items())}
    loaded = to_timm(state, packaged).state_dict()
    assert all(torch.equal(loaded[name], plain[name]) for name in plain)


@pytest.mark.parametrize("name", TINY_VIT_NAMES)
def test_name_of_tiny_vit(name: str) -> None:
    assert tiny_vit_name(name) == TINY_VIT_NAMES[name]


def test_every_tensor_of_tiny_vit() -> None:
    state = mobile_sam()
    loaded = to_timm(state, PACKAGED["tiny_vit_5m_224"]).state_dict()
    assert all(torch.equal(loaded[name], state[f"image_encoder.{original(name)}"]) for name in loaded)


def without_last(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(list(state.items())[:-1])


def with_swapped_kinds(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first norm's weight and bias, of equal shape, in the other order."""
    items = list(state.items())
    items[1], items[2] = items[2], items[1]
    return dict(items)


def with_another_shape(state: dict[str, Tensor]) -> dict[str, Tensor]:
    name = next(iter(state))
    return state | {name: state[name][:1]}


def without_norm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if "norm_head" not in name}


FAULTS: dict[str, tuple[str, Callable[[], dict[str, Tensor]], Callable[..., dict[str, Tensor]], str]] = {
    "a tensor less": ("mobilenetv2_100", mobilenet, without_last, "313 tensors; expected 314"),
    "another order": ("mobilenetv2_100", mobilenet, with_swapped_kinds, "1.bias .* at the place of bn1.weight"),
    "a shape": ("mobilenetv2_100", mobilenet, with_another_shape, r"0.0.weight \(1, 3, 3, 3\) stands"),
    "a shape by name": ("tiny_vit_5m_224", mobile_sam, with_another_shape, "size mismatch for patch_embed.conv1"),
    "a missing name": ("tiny_vit_5m_224", mobile_sam, without_norm, "(?s)Missing key.*head.norm.weight"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_refused(fault: str) -> None:
    name, state, change, message = FAULTS[fault]
    with pytest.raises(ValueError, match=message):
        to_timm(change(state()), PACKAGED[name])
