"""NOAH."""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch

from callbacks.measures import forward_gflops
from methods import PEFTMethod
from methods.noah import block_of
from tests.conftest import perturb
from tests.support.batches import as_batch

COUNTS: dict[str, int] = {}  # those of the stacked methods
IDENTITY: dict[str, Any] | None = {"lora_init": "zero_b"}
Build = Callable[..., PEFTMethod]

STACK = "adapter+lora+vpt"
PLACES: dict[str, Any] = {"adapter_placement": "noah", "lora_targets": ["qkv"], "lora_init": "trunc_normal"}
LARGEST: dict[str, Any] = {"adapter_dim": 10, "lora_rank": 10, "prompt_length": 10}
SIZES = {"adapter": [5, 0], "lora": [1, 10], "prompt": [0, 5]}


def super_net(build: Build, **options: Any) -> Any:
    model = build(f"{STACK}+noah", **PLACES | LARGEST | {"noah_sizes": [1, 5, 10]} | options)
    model.configure_model()
    perturb(model)
    return model


def test_a_sub_net_is_the_stack_with_the_first_channels(build: Build) -> None:
    """Its outputs and its number of parameters are those of a fit of the sub-net alone with the same values."""
    model = super_net(build)
    model.chosen = SIZES
    model.eval()
    options = model.options_of(SIZES)
    assert options["lora_ranks"] == {"blocks.0.attn.qkv": 1, "blocks.1.attn.qkv": 10}
    alone = build(STACK, **PLACES | options)
    alone.configure_model()
    assert model.count() == alone.parameter_counts()["method"]
    values = model.state_dict()
    with torch.no_grad():
        for name, parameter in alone.named_parameters():
            parameter.copy_(values[name][tuple(slice(size) for size in parameter.shape)])
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(images), alone.eval()(images))


def test_each_step_draws_a_sub_net_and_every_parameter_has_a_gradient(build: Build) -> None:
    model = super_net(build)
    batch = as_batch(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]))
    for sizes in ({"adapter": [0, 0], "lora": [0, 0], "prompt": [0, 0]}, SIZES):
        model.draw = lambda random, sizes=sizes: sizes
        model.train().zero_grad()
        model.loss(batch).backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    gradient = model.backbone.blocks[0].attn.qkv.lora.B.grad
    assert gradient[:, :1].any()
    assert not gradient[:, 1:].any()
    model.eval()
    assert model.count() == sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and "head" not in n)


def test_a_merge_is_that_of_an_evaluation(build: Build) -> None:
    model = build("lora+noah", noah_sizes=[1])
    model.configure_model()
    perturb(model)
    model.train()
    model.loss(as_batch(torch.randn(2, 3, 32, 32), torch.tensor([0, 1])))
    assert model.count() < model.parameter_counts()["method"]  # type: ignore[operator]
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.merge()(images), model.eval()(images), atol=1e-5, rtol=0)


def test_flops_are_those_of_the_sub_net(build: Build) -> None:
    model = super_net(build)
    with torch.no_grad():
        largest = forward_gflops(model.eval())
        model.chosen = SIZES
        assert forward_gflops(model.eval()) < largest


def test_draws(build: Build) -> None:
    model = super_net(build, noah_blocks=[0, 1])
    drawn = [model.draw(Random(seed)) for seed in range(20)]
    assert drawn == [model.draw(Random(seed)) for seed in range(20)]
    assert {size for sizes in drawn for size in sizes["lora"]} == {0, 1, 5, 10}
    assert all(sizes[kind][1] == 0 for sizes in drawn for kind in sizes)
    assert any(sizes["adapter"][0] != sizes["lora"][0] for sizes in drawn)


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("blocks.3.attn.qkv.lora", "blocks.3"),
        ("layers.1.blocks.0.mlp.adapter", "layers.1.blocks.0"),
        ("layer1.0.conv1.lora", "layer1.0.conv1"),
        ("stem.lora", "stem.lora"),
    ],
)
def test_block_of_a_module(name: str, block: str) -> None:
    assert block_of(name) == block


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("lora+noah", {"noah_sizes": [0]}, "expected positive sizes"),
        ("lora+noah", {"noah_sizes": [1, 9]}, "the lora of a block has a size of 8; expected sizes up to it"),
        ("lora+noah", {"noah_sizes": [1], "noah_blocks": [3]}, "expected at most 2, the number of blocks"),
        ("lora+noah", {"noah_sizes": [1], "noah_blocks": []}, "expected numbers of blocks"),
        ("ssf+noah", {}, r"use it as in --method adapter\+lora\+vpt\+noah"),
    ],
)
def test_wrong_options_are_refused(method: str, options: dict[str, Any], message: str, build: Build) -> None:
    with pytest.raises(ValueError, match=message):
        build(method, **options).configure_model()
