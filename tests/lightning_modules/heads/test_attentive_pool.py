"""Attentive pooling."""

from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks.measures import flop_counter
from lightning_modules.heads.attentive_pool import AttentivePool
from tests.support.golden import Golden


def test_video_code_of_dyt(pytestconfig: pytest.Config) -> None:
    """Output and gradients are those of its attentive block, for the tokens of three frames a clip."""
    golden = Golden(Path(pytestconfig.getoption("--golden-dir")) / "video.safetensors")
    pool = AttentivePool(24, 3)
    pool.load_state_dict(golden.part("pool"))
    tokens = golden.tensors["tokens"].requires_grad_()
    output = pool(tokens.unflatten(0, (-1, 3)).flatten(1, 2))
    torch.testing.assert_close(output, golden.tensors["output"], atol=1e-5, rtol=1e-5)
    output.square().sum().backward()
    gradients = {"tokens": tokens.grad} | {name: p.grad for name, p in pool.named_parameters()}
    expected = golden.part("grad")
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=2e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_flops(mode: Any) -> None:
    with mode(), flop_counter() as counter:
        AttentivePool(8, 2)(torch.randn(2, 5, 8))
    assert counter.get_total_flops() == 2 * 2 * (2 * 5 * 64 + 2 * 64 + 2 * 5 * 8)  # k and v, q and output, attention


def test_start() -> None:
    """The query is zero, and gets a gradient."""
    pool, tokens = AttentivePool(8, 2), torch.randn(2, 5, 8)
    assert not pool.query.any()
    pool(tokens).square().sum().backward()
    assert pool.query.grad is not None
    assert pool.query.grad.any()
