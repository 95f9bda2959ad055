"""Token dispatch: decisions, gathering and mixed adapters."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from methods.layers.token_dispatch import Adapter, Dispatch, MixedAdapter


def test_initial_values() -> None:
    op = Dispatch(64, Adapter(64, 8, 1.0, 0.0), 5.0, 1, "auto")
    assert 0.01 < float(op.dispatcher.weight.detach().std()) < 0.03
    zeros = (op.dispatcher.bias, op.adapter.up.weight, op.adapter.up.bias, op.adapter.down.bias)
    assert not any(bool(zero.any()) for zero in zeros)


def test_relaxed_mask() -> None:
    """Forward exactly 0 or 1; dM/dl = S (1 - S) / tau."""
    op = Dispatch(8, Adapter(8, 2, 1.0, 0.0), 5.0, 1, "auto").train()
    noise, x = torch.randn(3, 6), torch.randn(3, 7, 8)
    op.noise = lambda logits: noise  # type: ignore[method-assign]
    mask = op.decide(x)
    logits = (x[:, 1:] @ op.dispatcher.weight[0]).detach()
    assert torch.equal(mask, F.pad((logits + noise > 0).float(), (1, 0), value=1.0))
    mask.sum().backward()
    soft = torch.sigmoid((logits + noise) / 5)
    torch.testing.assert_close(op.dispatcher.bias.grad, (soft * (1 - soft) / 5).sum().view(1))


def test_noise_is_logistic() -> None:
    torch.manual_seed(0)
    noise = Dispatch(8, Adapter(8, 2, 1.0, 0.0), 5.0, 1, "auto").noise(torch.zeros(40_000))
    assert abs(float(noise.mean())) < 0.05
    assert float(noise.var()) == pytest.approx(torch.pi**2 / 3, rel=0.05)
    assert float((noise > 1).float().mean()) == pytest.approx(1 / (1 + torch.e), abs=0.01)


@pytest.mark.parametrize("router", ["softmax", "linear"])
def test_mixed_adapter(router: str) -> None:
    """W = sum_i alpha_i W_i for each image, alpha from its mean token."""
    mixed, x = MixedAdapter(3, router, 8, 4, 0.7, 0.0), torch.randn(5, 6, 8)
    with torch.no_grad():
        for parameter in mixed.parameters():
            parameter.normal_()
        alpha = mixed.router(x.mean(1))
        alpha = alpha.softmax(1) if router == "softmax" else alpha
        assert len({round(float(a), 4) for a in alpha[:, 0]}) == 5
        for image, weights in enumerate(alpha):
            parts = {
                name: sum(
                    a * dict(expert.named_parameters())[name] for a, expert in zip(weights, mixed.experts, strict=True)
                )
                for name, _ in mixed.experts[0].named_parameters()
            }
            hidden = torch.relu(F.linear(x[image], parts["down.weight"], parts["down.bias"]))
            expected = 0.7 * F.linear(hidden, parts["up.weight"], parts["up.bias"])
            torch.testing.assert_close(mixed(x, x)[image], expected, atol=1e-5, rtol=1e-5)


def test_equal_or_single_experts_are_the_plain_adapter() -> None:
    x = torch.randn(5, 6, 8)
    plain = Adapter(8, 4, 0.7, 0.0)
    nn.init.normal_(plain.up.weight)
    for experts in (1, 3):
        mixed = MixedAdapter(experts, "softmax", 8, 4, 0.7, 0.0)
        for expert in mixed.experts:
            expert.load_state_dict(plain.state_dict())
        torch.testing.assert_close(mixed(x, x), plain(x, x))
