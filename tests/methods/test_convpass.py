"""Convpass."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from lightning_modules.classification import Classification
from methods import PEFTMethod, compose
from methods.convpass import Bypass, Convpass, Grid
from tests.support.batches import as_batch
from tests.support.golden import Golden, head_parameters

Build = Callable[..., PEFTMethod]

COUNTS = {"vit_base_patch16_224": 327_552}
IDENTITY: dict[str, Any] | None = {}


def check_convpass(golden: Golden) -> None:
    weights = golden.part("peft")
    both = "blocks.0.adapter_mlp.down.weight" in weights
    model = golden.build(
        "convpass",
        convpass_dim=weights["blocks.0.adapter_attn.down.weight"].shape[0],
        convpass_scale=golden.config["method"]["scale"],
        convpass_branches="both" if both else "attn",
    )
    ours = {}
    for name, value in weights.items():
        ours[name] = model.backbone.get_parameter(name.replace("adapter_", "convpass_"))
        ours[name].data.copy_(value)
    golden.check_logits(model)
    golden.check_gradients(model, ours | head_parameters(model))


GOLDEN = {"convpass": check_convpass, "convpass_attn": check_convpass}


def test_attention_alone_counts() -> None:
    model = compose(Convpass, task=Classification)(
        backbone="vit_base_patch16_224", pretrained=False, convpass_branches="attn"
    )
    model.configure_model()
    assert model.parameter_counts()["method"] == 163_776


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_prefix_tokens_are_images_of_one_pixel(prefix: int) -> None:
    grid = Grid()
    grid.value = (2, 3)
    op = Bypass(8, 4, prefix, grid, scale=1.0, dropout=0.0, xavier=True)
    torch.nn.init.normal_(op.up.weight)
    u = torch.randn(2, prefix + 6, 8)

    def gelu(z: torch.Tensor) -> torch.Tensor:
        return z * torch.sigmoid(1.702 * z)

    hidden = gelu(op.down(u)).transpose(1, 2)  # (B, h, N)
    pixels = [op.conv(hidden[:, :, i, None, None]).flatten(2) for i in range(prefix)]
    patches = F.conv2d(hidden[:, :, prefix:].reshape(2, 4, 2, 3), op.conv.weight, op.conv.bias, padding=1).flatten(2)
    expected = op.up(gelu(torch.cat([*pixels, patches], dim=2).transpose(1, 2)))
    op.keep_output(op, (), u)
    torch.testing.assert_close(op.hook(torch.nn.Identity(), (), torch.zeros_like(u)), expected)


def test_convolution_starts_as_the_identity(build: Build) -> None:
    for xavier in (False, True):
        model = build("convpass", convpass_xavier=xavier)
        model.configure_model()
        conv = model.backbone.blocks[0].convpass_attn.conv
        x = torch.randn(1, 8, 4, 4)
        assert torch.equal(conv(x), x) is not xavier


def test_swin_grid() -> None:
    args = {"img_size": 56, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}
    torch.manual_seed(0)
    model = compose(Convpass, task=Classification)(
        backbone="swin_tiny_patch4_window7_224", backbone_args=args, pretrained=False, num_classes=3
    ).eval()
    images = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        expected = model(images)
        model.configure_model()
        assert torch.equal(model.eval()(images), expected)
    model.loss(as_batch(images, torch.tensor([0, 1]))).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_grid_of_each_image_size(backbone: str) -> None:
    args = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3, "dynamic_img_size": True}
    model = compose(Convpass, task=Classification)(
        backbone=backbone, backbone_args=args, pretrained=False, num_classes=3
    )
    model.configure_model()
    for size in ((32, 32), (48, 32), (64, 64)):
        assert model(torch.randn(1, 3, *size)).shape == (1, 3)


def test_dropped_patches_are_refused() -> None:
    args = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3, "patch_drop_rate": 0.5}
    model = compose(Convpass, task=Classification)(
        backbone="vit_tiny_patch16_224", backbone_args=args, pretrained=False, num_classes=3
    )
    with pytest.raises(ValueError, match="this backbone drops patches in training: leave patch_drop_rate out"):
        model.adapt_before_data()


def test_bypass_is_dropped_on_its_own(build: Build) -> None:
    """The branch and its bypass draw their drop paths independently, as in the published code."""
    model = build("convpass", convpass_branches="attn", convpass_scale=1.0, convpass_dropout=0.0)
    model.configure_model()
    op = model.backbone.blocks[0].convpass_attn
    torch.nn.init.normal_(op.up.weight)
    from timm.layers import DropPath

    path = DropPath(0.5).train()
    op.grid.value = (4, 4)
    op.keep_output(path, (), torch.randn(64, 17, 48))
    branch = path.forward(torch.ones(64, 17, 48))
    update = op.hook(path, (), branch) - branch
    kept = torch.stack([branch.flatten(1).any(1), update.flatten(1).abs().sum(1) > 1e-3])
    assert {tuple(pair) for pair in kept.T.tolist()} == {(a, b) for a in (False, True) for b in (False, True)}


def test_refusals(build: Build) -> None:
    for option, value in (("convpass_dropout", 1.0), ("convpass_dropout", -0.1), ("convpass_scale", 0.0)):
        with pytest.raises(ValueError, match=rf"{option}={value}: expected a"):
            build("convpass", **{option: value})
    with pytest.raises(ValueError, match="convpass_dim=0: expected a bottleneck of at least 1"):
        build("convpass", convpass_dim=0)
