"""Partial fine-tuning."""

from collections.abc import Callable
from typing import Any

import pytest

from lightning_modules.classification import Classification
from methods import PEFTMethod, compose
from methods.partial import Partial

Build = Callable[..., PEFTMethod]

COUNTS = {"vit_base_patch16_224": 7_089_408}
IDENTITY: dict[str, Any] | None = {}


@pytest.mark.parametrize(("blocks", "count"), [(2, 14_177_280), (4, 28_353_024)])
@pytest.mark.usefixtures("on_meta")
def test_counts(blocks: int, count: int) -> None:
    model = compose(Partial, task=Classification)(
        backbone="vit_base_patch16_224", pretrained=False, partial_blocks=blocks
    )
    model.configure_model()
    assert model.parameter_counts()["method"] == count


@pytest.mark.parametrize(
    ("backbone", "blocks", "expected"),
    [
        ("swin_tiny_patch4_window7_224", 3, {"layers.2.blocks.5", "layers.3.blocks.0", "layers.3.blocks.1", "norm"}),
        ("convnext_atto", 2, {"stages.3.blocks.0", "stages.3.blocks.1", "head.norm"}),
        ("vit_base_patch16_clip_224", 1, {"blocks.11", "norm"}),  # its norm_pre stands before the blocks
        ("vit_tiny_patch16_224", 1, {"blocks.11", "fc_norm"}),
    ],
)
def test_last_blocks_and_final_norm(backbone: str, blocks: int, expected: set[str]) -> None:
    args = {"global_pool": "avg"} if "fc_norm" in expected else None
    model = compose(Partial, task=Classification)(
        backbone=backbone, pretrained=False, partial_blocks=blocks, backbone_args=args
    )
    model.configure_model()
    heads = tuple(f"{name}." for name in model.head_names)
    trained = {n for n, p in model.backbone.named_parameters() if p.requires_grad and not n.startswith(heads)}
    everything = {n for n, _ in model.backbone.named_parameters() if any(n.startswith(f"{e}.") for e in expected)}
    assert trained == everything
    assert all(any(n.startswith(f"{e}.") for n in trained) for e in expected)


def test_refusals(build: Build) -> None:
    with pytest.raises(ValueError, match="partial_blocks=0: expected at least 1"):
        build("partial", partial_blocks=0)
    with pytest.raises(ValueError, match="partial_blocks=3: expected at most 2, because VisionTransformer has 2"):
        build("partial", partial_blocks=3).configure_model()
