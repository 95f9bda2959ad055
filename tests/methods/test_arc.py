"""ARC."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from methods import PEFTMethod
from tests.conftest import composed
from tests.support.golden import Golden, head_parameters

# two projections of 768 x 50; c (50,) and b (768,) of 24 adapters. With VTAB-1k's classifiers the paper's 0.13M
COUNTS = {"vit_base_patch16_224": 2 * 768 * 50 + 24 * (50 + 768)}
IDENTITY: dict[str, Any] | None = {"arc_branches": "attn"}
Build = Callable[..., PEFTMethod]


def place_of(name: str) -> str:
    """Our name of a parameter of the published code."""
    parts = name.split(".")
    if parts[1].endswith("down_projection"):
        return f"arc.{parts[1].removesuffix('_down_projection').replace('att', 'attn')}_24.P"
    layer = {"att_adapter": "attn.qkv", "mlp_adapter": "mlp.fc1"}[parts[3]]
    return f"blocks.{parts[2]}.{layer}.arc.{'c' if parts[4] == 'adapter_rescale' else 'b'}"


def check_arc(golden: Golden) -> None:
    model: Any = golden.build("arc", arc_rank=golden.config["method"]["dim"])
    ours: dict[str, Tensor] = {}
    for name, value in golden.part("peft").items():
        ours[name] = model.backbone.get_parameter(place_of(name))
        ours[name].data.copy_(value.view_as(ours[name]))
    assert len(ours) == sum("arc." in name for name, _ in model.backbone.named_parameters())
    golden.check_logits(model)
    golden.check_gradients(model, ours | head_parameters(model))
    golden.check_merge(model)


GOLDEN = {"arc": check_arc}


def test_blocks_share_their_projections(build: Build) -> None:
    model: Any = build("arc", arc_rank=6)
    model.configure_model()
    for other in (model, copy.deepcopy(model)):
        shared = other.backbone.arc
        assert set(shared) == {"attn_48", "mlp_48"}
        for block in other.backbone.blocks:
            assert block.attn.qkv.arc.shared[0] is shared["attn_48"]
            assert block.mlp.fc1.arc.shared[0] is shared["mlp_48"]
    c = model.backbone.blocks[0].mlp.fc1.arc.c
    assert 0 < c.abs().max() <= (6 / 7) ** 0.5  # Xavier uniform of a row of 6
    assert not model.backbone.blocks[0].attn.qkv.arc.c.any()


def test_one_pair_of_projections_for_each_width_of_a_swin() -> None:
    arguments = {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 4)}
    options: dict[str, Any] = {"backbone_args": arguments, "pretrained": False, "num_classes": 3, "arc_rank": 5}
    model: Any = composed("arc")(backbone="swin_tiny_patch4_window7_224", **options)
    model.configure_model()
    assert set(model.backbone.arc) == {"attn_24", "mlp_24", "attn_48", "mlp_48"}
    assert model.parameter_counts()["method"] == 2 * 5 * (24 + 48) + 4 * 5 + 2 * (24 + 48)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.merge()(images), model.eval()(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arc_rank": 0}, "^arc_rank=0: expected a positive rank$"),
        ({"arc_dropout": 1.0}, r"^arc_dropout=1\.0: expected a probability of at least 0 and below 1$"),
    ],
    ids=str,
)
def test_refusals(options: dict[str, Any], message: str, build: Build) -> None:
    with pytest.raises(ValueError, match=message):
        build("arc", **options)
