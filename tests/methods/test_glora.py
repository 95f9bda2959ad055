"""GLoRA."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from methods import PEFTMethod
from tests.conftest import perturb
from tests.support.golden import Golden, head_parameters

# for each layer (out, in): A and B r (out + in) each, C r (in + 1), D and E out each
LAYERS = [(2304, 768), (768, 768), (3072, 768), (768, 3072)]
COUNTS = {"vit_base_patch16_224": 12 * sum(8 * (o + i) + 4 * (i + 1) + 2 * o for o, i in LAYERS)}
IDENTITY: dict[str, Any] | None = {}
Build = Callable[..., PEFTMethod]
NAMES = {"Ad": "A.down", "Au": "A.up", "Bd": "B.down", "Bu": "B.up", "Cd": "C.down", "Cu": "C.up"}
NAMES |= {"D": "D.down", "E": "E.down"}


def check_glora(golden: Golden) -> None:
    model: Any = golden.build("glora", glora_rank=golden.config["method"]["rank"])
    ours: dict[str, Tensor] = {}
    for name, value in golden.part("peft").items():
        layer, _, theirs = name.rpartition(".")
        ours[name] = model.backbone.get_parameter(f"{layer}.glora.{NAMES[theirs]}")
        ours[name].data.copy_(value)
    assert len(ours) == sum(".glora." in name for name, _ in model.backbone.named_parameters())
    golden.check_logits(model)
    golden.check_gradients(model, ours | head_parameters(model))
    golden.check_merge(model)


GOLDEN = {"glora": check_glora}


def test_other_forms(build: Build) -> None:
    """The equation by hand for a vector A, a scalar B, a vector c, a scalar D and no E."""
    model: Any = build("glora", glora_a="vector", glora_b="scalar", glora_c="vector", glora_d="scalar", glora_e="none")
    model.configure_model()
    perturb(model)
    fc1 = model.backbone.blocks[0].mlp.fc1
    A, B, c, D = (fc1.glora[name].down for name in "ABCD")
    assert [tuple(tensor.shape) for tensor in (A, B, c, D)] == [(192,), (1,), (48,), (1,)]
    x = torch.randn(3, 48)
    weight = fc1.weight + fc1.weight * A[:, None] + B
    expected = x @ weight.T + fc1.weight @ c + D * fc1.bias + fc1.bias
    torch.testing.assert_close(fc1(x), expected)


def test_refusals(build: Build) -> None:
    with pytest.raises(ValueError, match="glora_rank=0: expected a positive rank"):
        build("glora", glora_rank=0)
    none = dict.fromkeys(("glora_a", "glora_b", "glora_c", "glora_d", "glora_e"), "none")
    with pytest.raises(ValueError, match="glora_a to glora_e are all none: expected one form or more"):
        build("glora", **none)
