"""Layers of heads."""

import torch
from torch import nn

from lightning_modules.heads.layers import ConvNormReLU, resized


def test_size_and_order() -> None:
    layers = ConvNormReLU(3, 5)
    assert [type(layer) for layer in layers] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert layers(torch.randn(2, 3, 7, 4)).shape == (2, 5, 7, 4)
    assert ConvNormReLU(3, 5, kernel=1)(torch.randn(2, 3, 7, 4)).shape == (2, 5, 7, 4)
    assert layers[0].bias is None


def test_resized() -> None:
    x = torch.arange(4.0).view(1, 1, 1, 4)
    assert resized(x, torch.Size((1, 4))) is x
    assert resized(x, torch.Size((2, 8))).shape == (1, 1, 2, 8)
