"""AdaptFormer."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_modules.classification import Classification
from methods import PEFTMethod, compose
from methods.adaptformer import AdaptFormer
from tests.support.golden import Golden, head_parameters

Build = Callable[..., PEFTMethod]

COUNTS = {"vit_base_patch16_224": 147_456}
IDENTITY: dict[str, Any] | None = {}


def check_adaptformer(golden: Golden) -> None:
    weights = golden.part("peft")
    hidden = weights["blocks.0.down.weight"].shape[0]
    scale = golden.config["method"]["scale"]
    model = golden.build("adaptformer", adaptformer_dim=hidden, adaptformer_scale=scale, adaptformer_bias=False)
    ours = {}
    for name, value in weights.items():
        block, _, path = name.removeprefix("blocks.").partition(".")
        ours[name] = model.backbone.get_parameter(f"blocks.{block}.adaptformer.{path}")
        ours[name].data.copy_(value)
    golden.check_logits(model)
    golden.check_gradients(model, ours | head_parameters(model))


GOLDEN = {"adaptformer": check_adaptformer}


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"adaptformer_dim": 32}, 589_824),
        ({"adaptformer_dim": 8, "adaptformer_bias": True}, 156_768),
        ({"adaptformer_dim": 64, "adaptformer_bias": True}, 1_189_632),
    ],
)
@pytest.mark.usefixtures("on_meta")
def test_counts(options: dict[str, Any], count: int) -> None:
    model = compose(AdaptFormer, task=Classification)(backbone="vit_base_patch16_224", pretrained=False, **options)
    model.configure_model()
    assert model.parameter_counts()["method"] == count


def test_block(build: Build) -> None:
    """x2 = x1 + mlp(norm2(x1)) + s A(x1), with biases; nothing is kept after the pass."""
    model = build("adaptformer", adaptformer_bias=True, adaptformer_scale=0.5)
    model.configure_model()
    block = model.backbone.blocks[0].eval()
    op = block.adaptformer
    x = torch.randn(2, 5, 48)
    with torch.no_grad():
        for parameter in op.parameters():
            parameter.normal_()
        x1 = x + block.attn(block.norm1(x))
        branch = 0.5 * op.up(torch.relu(op.down(x1)))
        m = block.mlp.fc2(block.mlp.act(block.mlp.fc1(torch.nn.functional.layer_norm(x1, (48,), eps=1e-6))))
        torch.testing.assert_close(block(x), x1 + m + branch, atol=1e-5, rtol=1e-5)
    assert op.stream is None


def test_adapter_outlives_a_dropped_mlp(build: Build) -> None:
    """Drop path takes the MLP away, not the adapter."""
    model = build("adaptformer", drop_path=0.9, adaptformer_dropout=0.0)
    model.configure_model()
    block = model.backbone.blocks[-1].train()
    torch.nn.init.ones_(block.adaptformer.up.weight)
    block.drop_path1.drop_prob = block.drop_path2.drop_prob = 1 - 1e-9
    x = torch.randn(2, 5, 48)
    with torch.no_grad():
        expected = x + 0.1 * block.adaptformer.up(torch.relu(block.adaptformer.down(x)))
        torch.testing.assert_close(block(x), expected)


def test_refusals(build: Build) -> None:
    for option, value in (("adaptformer_dropout", 1.0), ("adaptformer_dropout", -0.1), ("adaptformer_scale", 0.0)):
        with pytest.raises(ValueError, match=rf"{option}={value}: expected a"):
            build("adaptformer", **{option: value})
    with pytest.raises(ValueError, match="adaptformer_dim=-1: expected a bottleneck of at least 1"):
        build("adaptformer", adaptformer_dim=-1)
