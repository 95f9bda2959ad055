"""Sizes and channels that timm models take, with random and with pretrained weights."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models import save_for_hf

from backbones.timm_inputs import check_input_size
from backbones.timm_models import build_backbone, input_config
from tests.conftest import BACKBONE, TINY

TAG = f"{BACKBONE}.augreg_in21k"
SQUARE = (3, 32, 32)


@pytest.fixture(params=["file", "local-dir"])
def source(request: pytest.FixtureRequest, weights: Path, tmp_path: Path) -> tuple[str, bool | str, dict[str, Any]]:
    """Name, ``pretrained`` and arguments of the tiny network with pretrained weights."""
    if request.param == "file":
        return TAG, str(weights), dict(TINY)
    model = timm.create_model(BACKBONE, num_classes=5, **TINY)
    model.load_state_dict(load_file(weights))
    save_for_hf(model, str(tmp_path), model_args=TINY, safe_serialization=True)
    return f"local-dir:{tmp_path}", True, {}


@pytest.mark.parametrize("img_size", [48, [32, 64]])
def test_another_size_resamples_the_positions(img_size: Any, source: tuple[str, Any, dict[str, Any]]) -> None:
    name, pretrained, args = source
    model = build_backbone(name, pretrained, args | {"img_size": img_size})
    height, width = [img_size] * 2 if isinstance(img_size, int) else img_size
    assert input_config(model)["input_size"] == (3, height, width)
    assert model.pos_embed.shape[1] == 1 + height * width // 64
    plain = build_backbone(name, pretrained, dict(args))
    assert torch.equal(model.blocks[0].attn.qkv.weight, plain.blocks[0].attn.qkv.weight)
    assert model.eval()(torch.zeros(1, 3, height, width)).isfinite().all()


@pytest.mark.parametrize("channels", [1, 4])
def test_first_layer_of_other_channels(channels: int, source: tuple[str, Any, dict[str, Any]]) -> None:
    name, pretrained, args = source
    plain = build_backbone(name, pretrained, dict(args)).patch_embed.proj.weight
    model = build_backbone(name, pretrained, args | {"in_chans": channels})
    expected = plain.sum(1, keepdim=True) if channels == 1 else plain[:, [0, 1, 2, 0]] * 3 / 4
    torch.testing.assert_close(model.patch_embed.proj.weight, expected)
    config = input_config(model)
    assert config["input_size"] == (channels, 32, 32)
    assert config["mean"] == config["std"] == (0.5,) * channels


def test_mean_is_averaged_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    config = input_config(timm.create_model("resnet10t", in_chans=4))
    assert config["mean"] == pytest.approx([0.449] * 4)
    assert not caplog.records


def test_first_layer_that_cannot_be_converted(tmp_path: Path) -> None:
    args = {"embed_dim": 48, "depth": 1, "num_heads": 3}
    model = timm.create_model("naflexvit_base_patch16_gap", **args)
    save_for_hf(model, str(tmp_path), model_args=args, safe_serialization=True)
    with pytest.raises(ValueError, match=r"in_chans=1: timm cannot convert its pretrained first layer, a Linear"):
        build_backbone(f"local-dir:{tmp_path}", True, {"in_chans": 1})


def test_size_that_a_network_cannot_take() -> None:
    vit = timm.create_model(BACKBONE, **TINY).train()
    reason = r"images of 3 x 40 x 48 .* VisionTransformer expects 3 x 32 x 32 .*leave out --data.image_size.*\[40, 48\]"
    with pytest.raises(ValueError, match=reason + ".*dynamic_img_size true"):
        check_input_size(vit, (3, 40, 48), SQUARE)
    assert vit.training
    check_input_size(timm.create_model(BACKBONE, **TINY, dynamic_img_size=True), (3, 40, 48), SQUARE)
    convolutions = timm.create_model("resnet10t")
    check_input_size(convolutions, (3, 40, 48), SQUARE)
    with pytest.raises(ValueError, match="images of 1 x 32 x 32"):
        check_input_size(convolutions, (1, 32, 32), SQUARE)
    vgg = timm.create_model("vgg11", num_classes=0)
    with pytest.raises(ValueError, match=r"images of 3 x 8 x 8 .*Either leave out --data.image_size$"):
        check_input_size(vgg, (3, 8, 8), (3, 224, 224))


@pytest.mark.parametrize(
    ("name", "args", "remedy"),
    [
        (BACKBONE, TINY, r"Add --model\.backbone_args\.dynamic_img_size true$"),
        ("swin_tiny_patch4_window7_224", {}, r"add --model\.backbone_args\.strict_img_size false$"),
        (
            "beit_base_patch16_224",
            {"embed_dim": 48, "depth": 1, "num_heads": 3},
            "Use a network for images of any size",
        ),
    ],
)
def test_images_of_several_sizes(name: str, args: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        check_input_size(timm.create_model(name, **args), (3, 64, 96), (3, 224, 224), several=True)


def test_arguments_for_sizes_of_a_convolutional_network() -> None:
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'img_size'.*--data.image_size"):
        build_backbone("resnet10t", False, {"img_size": 64})
