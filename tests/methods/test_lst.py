"""LST. The published code tunes language models: the ladder is compared by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from methods import PEFTMethod
from tests.conftest import TINY, composed, perturb

Build = Callable[..., PEFTMethod]

# 12 side blocks of width 96 (111,840 each), 13 layers to it and one back (73,824 and 74,496), 12 gates and a norm
COUNTS = {"vit_base_patch16_224": 12 * 111_840 + 13 * 73_824 + 74_496 + 12 + 192}
IDENTITY: dict[str, Any] | None = None  # the classifier reads the side network alone


def test_ladder(build: Build) -> None:
    """By hand, with one side block at the second block."""
    model = build("lst", lst_reduction=4, lst_blocks=[2])
    model.configure_model()
    perturb(model.eval(), 0.3)
    backbone, side, images = model.backbone, model.side, torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        x: Any = backbone._pos_embed(backbone.patch_embed(images))  # type: ignore[operator]
        h = side.down[0](x)  # type: ignore[index, operator]
        x = backbone.blocks[1](backbone.blocks[0](x))  # type: ignore[index, operator]
        gate = torch.sigmoid(side.gates[0] / 0.1)  # type: ignore[index]
        h = gate * h + (1 - gate) * side.down[1](x)  # type: ignore[index, operator]
        features = side.up(side.norm(side.blocks[0](h)))  # type: ignore[index, operator]
        torch.testing.assert_close(model(images), backbone.head(features[:, 0]))  # type: ignore[operator]


def test_gates_start_half_open(build: Build) -> None:
    model = build("lst")
    model.configure_model()
    assert torch.equal(model.side.gates, torch.zeros(2))  # type: ignore[arg-type, union-attr]
    assert model.side.blocks[0].attn.qkv.in_features == 48 // 8  # type: ignore[index, union-attr]


def test_no_gradient_enters_the_backbone(build: Build) -> None:
    model = build("lst")
    model.configure_model()
    maps = model.frozen_features(torch.randn(2, 3, 32, 32))  # type: ignore[operator]
    assert len(maps) == 3
    assert not any(tokens.requires_grad for tokens in maps)


def test_recomputed_side_blocks_give_equal_gradients(build: Build) -> None:
    gradients = []
    for recomputes in (False, True):
        model = build("lst")
        model.configure_model()
        model.recompute(recomputes)
        model(torch.ones(1, 3, 32, 32)).sum().backward()
        gradients.append(model.side.gates.grad)  # type: ignore[union-attr]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lst_reduction": 0}, "lst_reduction=0: expected at least 1"),
        ({"lst_heads": 0}, "lst_heads=0: expected at least 1"),
        ({"lst_mlp_ratio": 0.0}, "expected a positive ratio"),
        ({"lst_reduction": 5, "lst_heads": 2}, "a width of 48 becomes 9, which 2 heads cannot share"),
        ({"lst_blocks": [2, 1]}, "expected ascending numbers of blocks, each from 1 to 2"),
        ({"lst_blocks": [3]}, "expected ascending numbers of blocks, each from 1 to 2"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    arguments = TINY | {"num_heads": 2}
    with pytest.raises(ValueError, match=message):
        composed("lst")(
            backbone="vit_tiny_patch16_224", backbone_args=arguments, pretrained=False, **options
        ).configure_model()
