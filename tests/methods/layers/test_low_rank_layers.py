"""Low-rank updates of convolutions and of rows that are not in one piece, against plain products."""

import copy
import pickle
from typing import Any

import pytest
import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, StdConv2d
from torch import nn

from methods.layers.low_rank import LowRank
from methods.layers.low_rank_layers import LoRALinear, add_low_rank, merge_low_rank, takes_dropout

LAYERS: dict[str, Any] = {
    "1x1": lambda: nn.Conv2d(6, 8, 1),
    "stride and padding": lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1),
    "dilation": lambda: nn.Conv2d(6, 8, (3, 1), dilation=2, padding=2, bias=False),
    "circular": lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular"),
    "groups": lambda: nn.Conv2d(6, 8, 3, groups=2, padding=1),
    "same": lambda: Conv2dSame(6, 8, 3, stride=2),
    "standardised": lambda: StdConv2d(6, 8, 3),
    "scaled": lambda: ScaledStdConv2d(6, 8, 3),
}
ORDER = torch.tensor([0, 1, 4, 5, 2, 3, 6, 7])


def updated(kind: str, order: torch.Tensor | None = None, dropout: float = 0.0) -> Any:
    torch.manual_seed(0)
    layer = nn.Linear(6, 8) if kind == "linear" else LAYERS[kind]()
    layer.requires_grad_(False)
    update = LowRank(layer, 2, 1.5, ((0, 4),) if order is not None else None, dropout, "hidden", order)
    nn.init.normal_(update.B)
    add_low_rank(layer, update)
    return layer


def images(kind: str) -> torch.Tensor:
    return torch.randn(3, 6) if kind == "linear" else torch.randn(2, 6, 7, 7)


@pytest.mark.parametrize("kind", LAYERS)
def test_output_and_gradients(kind: str) -> None:
    """Those of a layer with the weight ``W + s B A``, viewed as the kernel."""
    layer, plain = updated(kind), LAYERS[kind]()
    A, B = (layer.lora.get_parameter(name).detach().clone().requires_grad_() for name in "AB")
    x = images(kind).requires_grad_()
    frozen = layer._parameters["weight"]
    weight = frozen + 1.5 * (B @ A).view_as(frozen)
    others = {} if layer.bias is None else {"bias": layer.bias}
    if kind == "scaled":
        others["gain"] = layer.gain
    expected = torch.func.functional_call(plain, {"weight": weight, **others}, x)
    found = layer(x)
    torch.testing.assert_close(found, expected)
    g = torch.randn_like(found)
    gradients = torch.autograd.grad(found, [x, layer.lora.A, layer.lora.B], g)
    for one, other in zip(gradients, torch.autograd.grad(expected, [x, A, B], g), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kind", "order"), [*((kind, None) for kind in LAYERS), ("linear", ORDER), ("1x1", ORDER)])
def test_merged_layer_is_plain_and_gives_the_same(kind: str, order: torch.Tensor | None) -> None:
    layer = updated(kind, order, dropout=0.5 if order is not None else 0.0).eval()
    model, x = nn.Sequential(layer), images(kind)
    keys = {"0." + name for name in (nn.Linear(1, 1) if kind == "linear" else LAYERS[kind]()).state_dict()}
    frozen = layer._parameters["weight"].clone()
    with torch.no_grad():
        expected = model(x)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(x), expected)
        merge_low_rank(model)
        torch.testing.assert_close(model(x), expected)
    assert set(model.state_dict()) == keys
    assert not layer._forward_hooks
    assert type(layer) is (nn.Linear if kind == "linear" else type(LAYERS[kind]()))
    if order is not None:
        moved = (layer.weight != frozen).flatten(1).any(1)
        assert moved.tolist() == [True, True, False, False, True, True, False, False]


@pytest.mark.parametrize("kind", ["1x1", "stride and padding", "dilation", "circular", "same", "linear"])
def test_the_update_apart_is_the_update_of_the_weight(kind: str) -> None:
    """Dropout of (almost) nothing computes hidden channels apart; rows in and out of order."""
    x = images(kind)
    for order in (ORDER, None) if kind != "linear" else (ORDER,):
        layer = updated(kind, order, dropout=1e-9)
        assert layer.training
        torch.testing.assert_close(layer(x), copy.deepcopy(layer).eval()(x), atol=1e-5, rtol=1e-4)


def test_a_plain_linear_layer_keeps_its_fast_form() -> None:
    layer: Any = nn.Linear(6, 8)
    add_low_rank(layer, LowRank(layer, 2))
    assert type(layer) is LoRALinear


def test_layers_without_an_update_apart() -> None:
    kinds = {kind: takes_dropout(make()) for kind, make in LAYERS.items()}
    assert {kind for kind, takes in kinds.items() if not takes} == {"groups", "standardised", "scaled"}


def test_two_updates_of_one_layer_are_refused() -> None:
    layer = updated("1x1")
    with pytest.raises(ValueError, match="has a child 'lora' already"):
        add_low_rank(layer, LowRank(layer, 2))
