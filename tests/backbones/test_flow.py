"""Flow of features between layers, on a network with every case."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.flow import Flow, trace


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.flat = nn.Linear(4, 4)
        self.flat_bn = nn.BatchNorm1d(4)
        self.q, self.k = nn.Linear(4, 4), nn.Linear(4, 4)
        self.viewed = nn.Linear(4, 4)
        self.bare, self.dead, self.never = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.table = nn.Linear(2, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(x)))
        x = self.flat(x.flatten(2).transpose(1, 2))
        x = self.flat_bn(x.flatten(0, 1)).reshape_as(x)
        x = self.q(x) * self.k(x)
        x = self.viewed(x)
        x[:, :1] += self.table(torch.ones(2))
        self.dead(x)
        return self.head(F.linear(x, self.bare.weight).mean(1))


LAYERS = [name for name, _ in Net().named_children() if name != "relu"]


@pytest.fixture
def net() -> Net:
    return Net().requires_grad_(False).eval()


def flow_of(net: Net) -> Flow:
    return trace(net, LAYERS, net, torch.randn(2, 3, 5, 5))


def test_layers_on_the_path_from_the_images_to_the_outputs(net: Net) -> None:
    """Without a layer that is never called, is read bare, has no use, or reads no feature of an image."""
    shapes = flow_of(net).shapes
    assert set(LAYERS) - set(shapes) == {"never", "bare", "dead", "table"}
    assert shapes["conv"] == (2, 4, 3, 3)


def test_outputs_that_are_changed_in_place(net: Net) -> None:
    """By the next layer, or through a view."""
    assert flow_of(net).overwritten == {"bn", "viewed"}


def test_layers_that_alone_read_an_output(net: Net) -> None:
    """Through a view too; not a product, a sum in place or the end of the network."""
    assert flow_of(net).readers == {"conv": ("bn",), "flat": ("flat_bn",), "flat_bn": ("q", "k")}


def test_several_readers() -> None:
    class Branches(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.flat(x)
            return self.q(x) + self.k(x)

    class Shortcut(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.flat(x)
            return self.q(x) + self.k(x) + x

    images = torch.randn(2, 4)
    for net, readers in ((Branches(), {"flat": ("q", "k")}), (Shortcut(), {})):
        assert trace(net.requires_grad_(False), LAYERS, net, images).readers == readers


def test_the_network_stays_as_it_is(net: Net) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    flow_of(net)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    hooks: list[Any] = [[*m._forward_hooks, *m._forward_pre_hooks] for m in net.modules()]
    assert not any(hooks)


def test_outputs_of_several_tensors(net: Net) -> None:
    images = torch.randn(2, 3, 5, 5)
    nested = trace(net, LAYERS, lambda x: {"a": [net(x)], "b": (None,)}, images)
    assert nested == flow_of(net)
