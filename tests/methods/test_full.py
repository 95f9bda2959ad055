"""Full fine-tuning."""

from collections.abc import Callable
from typing import Any

import pytest

from methods import PEFTMethod

COUNTS = {"vit_base_patch16_224": 85_798_656}
IDENTITY: dict[str, Any] | None = {}


def test_layer_decay(build: Callable[..., PEFTMethod]) -> None:
    """lr d**i from the classifier down: the two blocks, the embeddings; the last norm belongs to the last block."""
    model = build("full", full_layer_decay=0.5, lr=0.8, weight_decay=0.1)
    model.configure_model()
    names = {parameter: name for name, parameter in model.named_parameters()}
    rates = {names[p]: group["lr"] for group in model.param_groups() for p in group["params"]}
    assert rates.keys() == set(names.values())
    expected = {"head": 0.8, "norm": 0.4, "blocks.1": 0.4, "blocks.0": 0.2, "patch_embed": 0.1, "cls_token": 0.1}
    expected |= {"pos_embed": 0.1}
    for name, rate in rates.items():
        (place,) = [p for p in expected if name.startswith(f"backbone.{p}")]
        assert rate == pytest.approx(expected[place]), name
    decayed = {names[p]: group["weight_decay"] for group in model.param_groups() for p in group["params"]}
    plain = build("full", lr=0.8, weight_decay=0.1)
    plain.configure_model()
    others = {parameter: name for name, parameter in plain.named_parameters()}
    assert decayed == {others[p]: group["weight_decay"] for group in plain.param_groups() for p in group["params"]}


def test_refusal(build: Callable[..., PEFTMethod]) -> None:
    with pytest.raises(ValueError, match="full_layer_decay=0: expected a factor above 0 and at most 1"):
        build("full", full_layer_decay=0)
