"""Token dispatch: decisions, gathering and mixed adapters."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from backbones.inject import attach
from methods.layers.token_dispatch import Adapter, AttentionDispatch, Dispatch, Logits, MixedAdapter


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


def dispatched(kind: type[Dispatch], skip: str) -> tuple[nn.Sequential, Dispatch]:
    """A norm and a branch that keeps tokens apart, with a dispatch in front of the first and behind the second."""
    torch.manual_seed(0)
    branch = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))
    op = kind(8, Adapter(8, 2, 0.5, 0.0), 5.0, 1, skip)
    nn.init.normal_(op.dispatcher.weight)
    nn.init.normal_(op.adapter.up.weight)
    attach(branch[1], "dispatch", op)
    branch[0].register_forward_pre_hook(op.pre_hook)
    return branch.eval(), op


@pytest.mark.parametrize("kind", [Dispatch, AttentionDispatch])
def test_gathered_tokens_give_what_the_mask_gives(kind: type[Dispatch]) -> None:
    """``M f(x) + A(x)``, and a branch that reads only the kept tokens."""
    (gathering, op), (dense, _) = dispatched(kind, "gather"), dispatched(kind, "dense")
    x, read = torch.randn(3, 7, 8, generator=torch.Generator().manual_seed(1)), []
    gathering[1].register_forward_pre_hook(lambda module, args: read.append(args[0].shape[:-1].numel()))
    with torch.no_grad():
        mask = op.decide(x)
        found = gathering(x)
        torch.testing.assert_close(found, dense(x))
        branch = F.linear(F.layer_norm(x, (8,)), gathering[1].weight, gathering[1].bias)
        torch.testing.assert_close(found, mask[..., None] * branch + op.adapter(x, x))
    kept = mask.sum(1)
    assert mask[:, 0].all(), "the class token is always kept"
    assert len(set(kept.tolist())) > 1, "images keep different numbers of tokens"
    assert read == [int(kept.sum()) if kind is Dispatch else 3 * int(kept.max())]
    assert op.stream is op.mask is op.rows is op.valid is None


def test_images_are_padded_to_the_longest() -> None:
    op = AttentionDispatch(8, Adapter(8, 2, 1.0, 0.0), 5.0, 1, "gather")
    x = torch.arange(12.0).view(2, 6, 1).expand(2, 6, 8)
    mask = torch.tensor([[True, False, True, False, False, False], [True, True, False, True, False, True]])
    tokens = op.gather(x, mask)
    assert op.valid is not None
    assert op.rows is not None
    assert op.valid.tolist() == [[True, True, False, False], [True] * 4]
    assert tokens[..., 0][op.valid].tolist() == [0, 2, 6, 7, 9, 11] == op.rows.tolist()


def test_an_image_without_a_kept_token_attends_to_something() -> None:
    """No key at all gives NaN in a softmax."""
    op = AttentionDispatch(8, Adapter(8, 2, 1.0, 0.0), 5.0, 0, "dense").eval()
    op.mask = torch.tensor([[True, False, True], [False, False, False]])
    _, options = op.attention_pre_hook(nn.Identity(), (), {})
    assert options["attn_mask"].shape == (2, 1, 1, 3)
    assert options["attn_mask"].flatten(1).tolist() == [[True, False, True], [True, True, True]]


def test_logits_against_autograd() -> None:
    linear = nn.Linear(6, 1).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    inputs = (x, linear.weight, linear.bias)
    found, expected = Logits.apply(*inputs), linear(x)
    assert torch.equal(found, expected)
    g = torch.randn_like(expected)
    for one, other in zip(torch.autograd.grad(found, inputs, g), torch.autograd.grad(expected, inputs, g), strict=True):
        torch.testing.assert_close(one, other)


def test_logits_keep_tokens_of_bf16() -> None:
    linear, kept = nn.Linear(6, 1), list[torch.dtype]()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.dtype) or t, lambda t: t):
        logits = Logits.apply(torch.randn(2, 5, 6, dtype=torch.bfloat16), linear.weight, linear.bias)
    assert logits.dtype is torch.float32
    assert kept == [torch.bfloat16, torch.float32]
