"""Layers of the package peft inside the layers of a backbone."""

import copy
import pickle

import peft
import torch
from torch import nn

from methods.layers.peft_layers import inject, merge_layers


def adapted() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    assert inject(network, peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)) == ["0"]
    return network


def test_the_plain_layer_keeps_its_place_and_its_hooks_run_once() -> None:
    network, calls = adapted(), []
    assert type(network[0]) is nn.Linear
    assert {"0.weight", "0.bias", "1.weight", "1.bias"} < network.state_dict().keys()
    network[0].register_forward_hook(lambda *_: calls.append(1))
    x, layer = torch.randn(3, 4), network[0].hf_peft
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = network[1](x @ network[0].weight.T + network[0].bias + layer.scaling["default"] * x @ A.T @ B.T)
    torch.testing.assert_close(network(x), expected)
    assert calls == [1]


def test_weights_that_are_loaded_moved_or_copied_are_those_of_the_layer() -> None:
    network, x = adapted(), torch.randn(3, 4, dtype=torch.float64)
    copies = [copy.deepcopy(network), pickle.loads(pickle.dumps(network))]
    for other in [network, *copies]:
        other.double().load_state_dict(
            {name: torch.ones_like(t) for name, t in other.state_dict().items()}, assign=True
        )
        scale = other[0].hf_peft.scaling["default"]
        hidden = x.sum(1, keepdim=True) * (1 + 2 * scale) + 1
        torch.testing.assert_close(other(x), (hidden * 6 + 1).expand(-1, 2))
        with torch.no_grad():
            other[0].weight.zero_()
        torch.testing.assert_close(other(x), ((x.sum(1, keepdim=True) * 2 * scale + 1) * 6 + 1).expand(-1, 2))


def test_merged_layers_are_plain() -> None:
    network, x = adapted(), torch.randn(3, 4)
    with torch.no_grad():
        expected = network(x)
        merge_layers(network)
        torch.testing.assert_close(network(x), expected)
    assert list(network.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert "forward" not in vars(network[0])
