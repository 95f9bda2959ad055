"""Adam-atan2 against reference steps, and what sets it apart from AdamW."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.optim.adam_atan2 import AdamATan2

every_path = pytest.mark.parametrize("foreach", [False, True])


@every_path
def test_golden(foreach: bool, pytestconfig: pytest.Config) -> None:
    path = Path(pytestconfig.getoption("--golden-dir")) / "scaling_exponents.json"
    golden: dict[str, Any] = json.loads(path.read_text())["adam_atan2"]
    for case in golden["cases"]:
        theta = nn.Parameter(torch.tensor(golden["theta0"], dtype=torch.float64))
        settings = {name: case[name] for name in ("a", "b", "lr", "weight_decay")}
        optimizer = AdamATan2([theta], betas=(case["beta1"], case["beta2"]), foreach=foreach, **settings)
        assert len(golden["grads"]) == len(case["theta"])
        for gradient, expected in zip(golden["grads"], case["theta"], strict=True):
            theta.grad = torch.tensor(gradient, dtype=torch.float64)
            optimizer.step()
            expected = torch.tensor(expected, dtype=torch.float64)
            torch.testing.assert_close(theta.detach(), expected, rtol=1e-12, atol=0)


def gradients(steps: int, shapes: list[tuple[int, ...]], scale: float = 1.0) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [[scale * torch.randn(shape, generator=generator) for shape in shapes] for _ in range(steps)]


SHAPES: list[tuple[int, ...]] = [(4, 3), (5,)]


def follow(
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], scale: float = 1.0, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Parameters after 20 steps along fixed gradients."""
    generator = torch.Generator().manual_seed(1)
    params = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]
    optimizer = make(params)
    for step in gradients(20, SHAPES, scale):
        for parameter, gradient in zip(params, step, strict=True):
            parameter.grad = gradient.to(dtype)
        optimizer.step()
    return [parameter.detach() for parameter in params]


def test_the_scale_of_gradients_does_not_matter() -> None:
    for scale in (1e-6, 1e6):
        for plain, scaled in zip(follow(AdamATan2), follow(AdamATan2, scale), strict=True):
            torch.testing.assert_close(plain, scaled, atol=1e-6, rtol=0)
    moved = zip(follow(torch.optim.AdamW), follow(torch.optim.AdamW, 1e-6), strict=True)
    assert max(float((plain - scaled).abs().max()) for plain, scaled in moved) > 1e-5


def test_small_steps_are_those_of_adamw() -> None:
    """With b large, atan2(m, b sqrt(v)) is m / (b sqrt(v)) to first order; decay as in AdamW."""
    ours = follow(lambda params: AdamATan2(params, lr=1e-2, a=300.0, b=300.0, weight_decay=0.1))
    theirs = follow(lambda params: torch.optim.AdamW(params, lr=1e-2, weight_decay=0.1, eps=1e-30))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_paths_agree_and_maximize_goes_the_other_way() -> None:
    for one, many in zip(*(follow(lambda p, f=f: AdamATan2(p, foreach=f)) for f in (False, True)), strict=True):
        assert torch.equal(one, many)
    up, down = follow(lambda p: AdamATan2(p, maximize=True)), follow(AdamATan2, scale=-1.0)
    for a, b in zip(up, down, strict=True):
        assert torch.equal(a, b)


@every_path
def test_bf16_parameters_have_fp32_moments(foreach: bool) -> None:
    parameter = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = AdamATan2([parameter], lr=0.1, foreach=foreach)
    parameter.grad = torch.full_like(parameter, 1e-12)
    optimizer.step()
    assert parameter.tolist() == [pytest.approx(0.9, abs=4e-3)] * 3
    state = optimizer.state[parameter]
    assert {name: tensor.dtype for name, tensor in state.items()} == dict.fromkeys(
        ("step", "exp_avg", "exp_avg_sq"), torch.float32
    )
    again = AdamATan2([parameter])
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for name, tensor in again.state[parameter].items():
        assert tensor.dtype is torch.float32
        assert torch.equal(tensor, state[name]), name


@every_path
def test_resumed_trajectory_and_late_parameters(foreach: bool) -> None:
    first, late = (nn.Parameter(torch.ones(4)) for _ in range(2))
    optimizer = AdamATan2([first, late], lr=0.1, foreach=foreach)
    steps = gradients(4, [(4,)])
    for number, (gradient,) in enumerate(steps):
        if number == 2:  # from here on both train, and go through a state dict
            restored = AdamATan2([first, late], lr=0.1, foreach=foreach)
            restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            optimizer = restored
            late.grad = gradient.clone()
        first.grad = gradient.clone()
        optimizer.step()
    assert int(optimizer.state[first]["step"]) == 4
    assert int(optimizer.state[late]["step"]) == 2
    alone = nn.Parameter(torch.ones(4))
    whole = AdamATan2([alone], lr=0.1, foreach=foreach)
    for (gradient,) in steps:
        alone.grad = gradient.clone()
        whole.step()
    assert torch.equal(alone, first)


def test_zero_gradient_and_the_largest_step() -> None:
    still, moved = nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(2))
    optimizer = AdamATan2([still, moved], lr=0.1, a=2.0, betas=(0.0, 0.999))
    for gradient in (0.0, 1e3):  # nothing, then a burst that the second moment has not seen
        still.grad, moved.grad = torch.zeros(2), torch.full((2,), gradient)
        optimizer.step()
    assert still.tolist() == [1.0, 1.0]
    assert float(moved.detach().abs().max()) <= 0.1 * 2 * torch.pi / 2


@pytest.mark.parametrize(
    ("options", "match"),
    [({"lr": -1.0}, "lr=-1"), ({"a": 0.0}, "a=0"), ({"betas": (1.0, 0.9)}, r"betas=\(1\.0"), ({"b": -1.0}, "b=-1")],
)
def test_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        AdamATan2([nn.Parameter(torch.ones(1))], **options)


def test_closure() -> None:
    parameter = nn.Parameter(torch.tensor(2.0))
    optimizer = AdamATan2([parameter], lr=0.1)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = parameter.square()
        value.backward()
        return value

    assert float(optimizer.step(loss).detach()) == 4.0
    assert float(parameter.detach()) == pytest.approx(1.9)
