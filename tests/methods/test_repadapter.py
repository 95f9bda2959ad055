"""RepAdapter."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lightning_modules.classification import Classification
from methods import PEFTMethod, compose
from methods.repadapter import LinearAdapter, RepAdapter
from tests.support.golden import Golden, head_parameters

Build = Callable[..., PEFTMethod]

COUNTS = {"vit_base_patch16_224": 239_808}
IDENTITY: dict[str, Any] | None = {}

PLACES = {"adapter_attn": "attn.qkv.repadapter", "adapter_mlp": "mlp.fc1.repadapter"}
PARTS = {
    "conv_A.weight": "down.weight",
    "conv_A.bias": "down.bias",
    "conv_B.weight": "up_weight",
    "conv_B.bias": "up_bias",
}


def check_repadapter(golden: Golden) -> None:
    weights = golden.part("peft")
    hidden = weights["blocks.0.adapter_attn.conv_A.weight"].shape[0]
    both = "blocks.0.adapter_mlp.conv_A.weight" in weights
    model = golden.build(
        "repadapter",
        repadapter_dim=hidden,
        repadapter_groups=hidden // weights["blocks.0.adapter_attn.conv_B.weight"].shape[1],
        repadapter_scale=golden.config["method"]["scale"],
        repadapter_branches="both" if both else "attn",
    )
    ours = {}
    for name, value in weights.items():
        _, block, place, part = name.split(".", 3)
        ours[name] = model.backbone.get_parameter(f"blocks.{block}.{PLACES[place]}.{PARTS[part]}")
        ours[name].data.copy_(value.view_as(ours[name]))
    golden.check_logits(model)
    golden.check_gradients(model, ours | head_parameters(model))
    golden.check_merge(model)


GOLDEN = {"repadapter": check_repadapter, "repadapter_attn": check_repadapter}


def test_attention_alone_counts() -> None:
    model = compose(RepAdapter, task=Classification)(
        backbone="vit_base_patch16_224", pretrained=False, repadapter_branches="attn"
    )
    model.configure_model()
    assert model.parameter_counts()["method"] == 119_904


def test_up_projection_equals_a_grouped_convolution() -> None:
    op = LinearAdapter(12, 6, 3, scale=0.5, dropout=0.0, spatial=False, bias=True)
    for parameter in op.parameters():
        nn.init.normal_(parameter)
    conv = nn.Conv1d(6, 12, 1, groups=3)
    conv.weight.data, conv.bias.data = op.up_weight.data[:, :, None], op.up_bias.data
    u = torch.randn(2, 5, 12)
    expected = u + 0.5 * conv(op.down(u).transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(op.pre_hook(op, (u,))[0], expected)


@pytest.mark.parametrize(
    ("backbone", "args", "left"),
    [
        # 40 pixels: windows are padded, and the padding passes through the adapter before and after merging
        ("swin_tiny_patch4_window7_224", {"img_size": 40, "embed_dim": 24, "depths": (1, 2), "num_heads": (2, 4)}, 0),
        ("convnext_atto", {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}, 5),  # conv_mlp: fc1 is a convolution
        ("convnext_tiny", {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}, 5),
        ("vit_tiny_patch16_224", {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3, "qkv_bias": False}, 0),
    ],
)
def test_merge_on_other_backbones(backbone: str, args: dict[str, Any], left: int) -> None:
    torch.manual_seed(0)
    model = compose(RepAdapter, task=Classification)(
        backbone=backbone, backbone_args=args, pretrained=False, num_classes=3, repadapter_dim=4, repadapter_scale=0.5
    ).eval()
    images = torch.randn(2, 3, args.get("img_size", 64), args.get("img_size", 64))
    with torch.no_grad():
        expected = model(images)
        model.configure_model()
        assert torch.equal(model.eval()(images), expected)
        for name, parameter in model.named_parameters():
            if "repadapter" in name:
                parameter.normal_(std=0.3)
            elif name.endswith("gamma"):
                parameter.fill_(0.5)  # a layer scale of 1e-6 would hide the adapters
        adapted = model(images)
        assert (adapted - expected).abs().max() > 1e-3
        merged = model.merge()
        torch.testing.assert_close(merged(images), adapted, atol=1e-5, rtol=1e-5)
    kept = [name for name, m in merged.named_modules() if isinstance(m, LinearAdapter)]
    assert len(kept) == left  # no plain layer equals an adapter before a depthwise convolution
    assert all(name.endswith("conv_dw.repadapter") for name in kept)


def test_refusals(build: Build) -> None:
    for option, value in (("repadapter_dropout", 1.0), ("repadapter_dropout", -0.1), ("repadapter_scale", 0.0)):
        with pytest.raises(ValueError, match=rf"{option}={value}: expected a"):
            build("repadapter", **{option: value})
    with pytest.raises(ValueError, match="repadapter_dim=0: expected a bottleneck of at least 1"):
        build("repadapter", repadapter_dim=0)
    with pytest.raises(ValueError, match="repadapter_groups=3: expected a positive divisor of repadapter_dim=8"):
        build("repadapter", repadapter_groups=3)
    with pytest.raises(ValueError, match="repadapter_groups=5: expected a divisor of the width 48"):
        build("repadapter", repadapter_dim=10, repadapter_groups=5).configure_model()
    model = compose(RepAdapter, task=Classification)(backbone="starnet_s050", pretrained=False)
    with pytest.raises(ValueError, match="StarNet has no blocks whose layers are known: use lora, ssf, bitfit or gps"):
        model.adapt_before_data()
