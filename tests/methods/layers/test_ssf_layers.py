"""Layers with a scale and a shift."""

import copy
import pickle
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d, GroupNorm, LayerNorm2d, LayerNormAct2d
from torch import nn

from methods.layers.ssf_layers import ScaleShift, SSFConv2d, SSFLinear, add_pair, remove_pair


def test_a_scale_of_zero_keeps_exact_gradients() -> None:
    """The custom backward divides by the scale; a layer with a tiny one must not."""
    layer = SSFLinear(4, 3)
    layer.ssf = ScaleShift(3, 0.1)
    layer.ssf.scale.data[1] = 0.0
    x = torch.randn(5, 4)
    (layer(x) * torch.arange(3.0)).sum().backward()
    z = nn.functional.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer.ssf.scale.grad, (z * torch.arange(3.0)).sum(0))


def test_the_check_of_the_scales_follows_the_optimizer() -> None:
    """Fused optimizers change a tensor without counting its version up, so nothing may be remembered by version."""
    op = ScaleShift(3, 0.0)
    for optimizer in (torch.optim.SGD([op.scale], lr=1.0), torch.optim.Adam([op.scale], lr=1.0, fused=True)):
        with torch.no_grad():
            op.scale.fill_(1.0)
        assert op.divisible
        op.scale.grad = torch.ones(3)
        optimizer.step()  # 1 - 1 = 0
        assert not op.divisible, type(optimizer).__name__


def test_channels_are_told_by_the_layer_not_by_the_shape() -> None:
    """A (B, C, H, W) map with W = C is scaled along its channels; the published helper takes the last axis."""
    layer = SSFConv2d(3, 8, 1)
    layer.ssf = ScaleShift(8, 0.5, spatial=True)
    x = torch.randn(2, 3, 8, 8)
    expected = nn.functional.conv2d(x, layer.weight, layer.bias) * layer.ssf.scale.view(1, 8, 1, 1)
    torch.testing.assert_close(layer(x), expected + layer.ssf.shift.view(1, 8, 1, 1))


NORMS: dict[str, Any] = {
    "BatchNorm": lambda: nn.BatchNorm2d(4),
    "BatchNorm, no affine map": lambda: nn.BatchNorm2d(4, affine=False),
    "BatchNorm and ReLU": lambda: BatchNormAct2d(4),
    "GroupNorm": lambda: GroupNorm(4, 2),
    "LayerNorm": lambda: LayerNorm2d(4),
    "LayerNorm and ReLU": lambda: LayerNormAct2d(4),
}


@pytest.mark.parametrize("kind", NORMS)
def test_norms(kind: str) -> None:
    """The activation of a norm acts on the scaled and shifted feature; frozen weights keep name and value."""
    norm, x = NORMS[kind]().eval(), torch.randn(2, 4, 3, 3)
    plain, keys = type(norm), set(norm.state_dict())
    activation = norm.act if hasattr(norm, "act") else nn.Identity()
    bare = copy.deepcopy(norm)
    bare.act = nn.Identity()
    op = ScaleShift(4, 0.5, spatial=True)
    expected = activation(op.hook(bare, (x,), bare(x)))
    add_pair(norm, op, overwritten=True)
    assert set(norm.state_dict()) == keys | {"ssf.scale", "ssf.shift"}
    for one in (norm, copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        torch.testing.assert_close(one(x), expected)
    remove_pair(norm)
    assert type(norm) is plain
    assert set(norm.state_dict()) == keys
    torch.testing.assert_close(norm(x), activation(bare(x)))


@pytest.mark.parametrize("layer", [nn.Linear(4, 4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding="same")])
def test_an_output_that_is_changed_in_place(layer: nn.Module) -> None:
    """The gradients are equal to those of a ReLU that is not in place."""
    x = torch.randn(2, 4, 4, 4)
    add_pair(layer, ScaleShift(4, 0.5, isinstance(layer, nn.Conv2d)), overwritten=True)
    found = []
    for inplace in (True, False):
        layer.zero_grad()
        nn.functional.relu(layer(x), inplace=inplace).square().sum().backward()
        found.append([p.grad.clone() for p in layer.ssf.parameters()])  # type: ignore[union-attr]
    torch.testing.assert_close(found[0], found[1])


def test_a_convolution_with_a_named_padding() -> None:
    layer, x = nn.Conv2d(4, 4, 3, padding="same"), torch.randn(2, 4, 4, 4, requires_grad=True)
    add_pair(layer, ScaleShift(4, 0.5, spatial=True), overwritten=False)
    layer(x).sum().backward()
    assert x.grad is not None
