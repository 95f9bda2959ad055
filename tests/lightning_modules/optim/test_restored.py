"""State of an optimizer: what does not fit is named, and settings are those of the run."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from lightning_modules.optim.optimizers import OPTIMIZERS, build_optimizer
from lightning_modules.optim.restored import restore_moments

State = dict[str, Any]


def after_two_steps(name: str, eps: float = 1e-8) -> Optimizer:
    """Optimizer over a matrix and a vector, with the check before it restores a state."""
    torch.manual_seed(0)
    matrix, vector = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3))
    groups: list[dict[str, Any]] = [{"params": [matrix], "weight_decay": 0.1}, {"params": [vector], "weight_decay": 0}]
    optimizer = build_optimizer(name, groups, lr=0.1, eps=eps, fused=False)
    optimizer.register_load_state_dict_pre_hook(restore_moments)
    for _ in range(2):
        (matrix.square().sum() + vector.square().sum()).backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_own_state_comes_back(name: str) -> None:
    optimizer = after_two_steps(name)
    before = copy.deepcopy(optimizer.state_dict())
    for moments in optimizer.state.values():
        for tensor in moments.values():
            tensor.zero_()
    optimizer.load_state_dict(before)
    torch.testing.assert_close(optimizer.state_dict(), before, rtol=0, atol=0)
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def test_settings_are_those_of_the_run() -> None:
    saved = after_two_steps("adamw", eps=1e-3).state_dict()
    saved["param_groups"][0] = {"params": saved["param_groups"][0]["params"], "betas": "x"}
    optimizer = after_two_steps("adamw", eps=1e-6)
    optimizer.load_state_dict(saved)
    assert [group["eps"] for group in optimizer.param_groups] == [1e-6, 1e-6]
    assert [group["betas"] for group in optimizer.param_groups] == [(0.9, 0.999)] * 2
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0]


CHANGES: dict[str, Callable[[State], Any]] = {
    "it has no 'state'": lambda s: s.pop("state"),
    "its 'param_groups/0' is None; expected a mapping": lambda s: s.update(param_groups=[None]),
    r"it has groups of \[1\] parameters, and those of this run have \[1, 1\]": lambda s: s["param_groups"].pop(),
    r"its parameters have the numbers \[0, 7\]; expected 0 to 1": lambda s: s["param_groups"][1].update(params=[7]),
    r"its step of parameter 0 is None; expected real numbers of the shape \(\)": lambda s: s["state"][0].pop("step"),
    "its step of parameter 1 is None; expected real numbers": lambda s: s["state"].pop(1),
    r"its exp_avg_sq of parameter 0 is a tensor \(4, 3\) of torch.float32; expected .* the shape \(3, 4\)": lambda s: s[
        "state"
    ][0].update(exp_avg_sq=torch.zeros(4, 3)),
    "its exp_avg of parameter 0 is 'x'": lambda s: s["state"][0].update(exp_avg="x"),
    "its exp_avg of parameter 0 is a tensor .* of torch.int64": lambda s: s["state"][0].update(
        exp_avg=torch.zeros(3, 4, dtype=torch.int64)
    ),
    "its exp_avg of parameter 1 holds NaN or infinity": lambda s: s["state"][1].update(
        exp_avg=torch.full((3,), torch.nan)
    ),
}


@pytest.mark.parametrize("message", CHANGES)
def test_states_that_do_not_fit(message: str) -> None:
    optimizer = after_two_steps("adam")
    saved = copy.deepcopy(optimizer.state_dict())
    CHANGES[message](saved)
    with pytest.raises(ValueError, match=f"no Adam can go on from the state of the optimizer: {message}.*init_from"):
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize(("before", "now"), [("adamw", "sgd"), ("sgd", "adamw"), ("adafactor", "adam")])
def test_states_of_another_optimizer(before: str, now: str) -> None:
    with pytest.raises(ValueError, match=r"parameter 0 has '\w+', which is of another optimizer"):
        after_two_steps(now).load_state_dict(after_two_steps(before).state_dict())
