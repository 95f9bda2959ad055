"""(IA)^3."""

import copy
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch.nn import functional as F

from methods import PEFTMethod
from tests.conftest import perturb

COUNTS = {"vit_base_patch16_224": 12 * (768 + 768 + 3072)}
IDENTITY: dict[str, Any] | None = {}
Build = Callable[..., PEFTMethod]


def test_computes_what_peft_computes(build: Build) -> None:
    """Logits and gradients of peft's (IA)^3, whose factors of queries are kept at 1."""
    model: Any = build("ia3")
    plain = copy.deepcopy(model.backbone)
    model.configure_model()
    perturb(model)
    config = peft.IA3Config(target_modules=["qkv", "fc2"], feedforward_modules=["fc2"])
    theirs: Any = peft.get_peft_model(plain, config)
    theirs.base_model.model.head.load_state_dict(model.backbone.head.state_dict())
    pairs = []
    for ours, other in zip(model.backbone.blocks, theirs.base_model.model.blocks, strict=True):
        kv, hidden = other.attn.qkv.ia3_l["default"], other.mlp.fc2.ia3_l["default"]
        kv.data[48:, 0], hidden.data[0] = ours.attn.qkv.ia3.l.data, ours.mlp.fc2.ia3.l.data
        pairs += [(ours.attn.qkv.ia3.l, kv), (ours.mlp.fc2.ia3.l, hidden)]
    images, labels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2])
    logits, expected = model.eval()(images), theirs.eval()(images)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    F.cross_entropy(logits, labels).backward()
    F.cross_entropy(expected, labels).backward()
    for mine, their in pairs:
        torch.testing.assert_close(mine.grad, their.grad.flatten()[-len(mine) :], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "count"), [({"ia3_attention": False}, 2 * 192), ({"ia3_mlp": False}, 2 * 96)], ids=str
)
def test_parts(options: dict[str, Any], count: int, build: Build) -> None:
    model = build("ia3", **options)
    model.configure_model()
    assert model.parameter_counts()["method"] == count


def test_refusals(build: Build) -> None:
    with pytest.raises(ValueError, match="ia3_attention and ia3_mlp are both false: expected one of them"):
        build("ia3", ia3_attention=False, ia3_mlp=False)
