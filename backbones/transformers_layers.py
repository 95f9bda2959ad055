"""Layers of transformers and torch's layers with equal outputs, which methods know."""

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from backbones.inject import Backbone


def torch_layers(backbone: Backbone) -> Backbone:
    """Replace RMSNorm and Conv1D of transformers, in place, by layers of torch with equal outputs."""
    for name, module in list(backbone.named_modules()):
        kind = type(module).__name__
        if kind == "Conv1D":
            backbone.set_submodule(name, linear_of(module))
        elif kind.endswith("RMSNorm") and not isinstance(module, nn.RMSNorm):
            norm = rms_norm_of(module)
            if norm is not None:
                backbone.set_submodule(name, norm)
    return backbone


def linear_of(layer: Any) -> nn.Linear:
    """Linear layer with the values of a Conv1D, whose weight (in, out) is transposed."""
    inputs, outputs = layer.weight.shape
    linear = nn.Linear(inputs, outputs, device="meta")
    linear.weight, linear.bias = nn.Parameter(layer.weight.detach().t().contiguous()), layer.bias
    return linear


def rms_norm_of(layer: Any) -> nn.RMSNorm | None:
    """Torch's RMSNorm with the weight of one of transformers; None if its outputs differ, as with ``1 + weight``."""
    eps = getattr(layer, "variance_epsilon", getattr(layer, "eps", None))
    weight = getattr(layer, "weight", None)
    if eps is None or weight is None or weight.dim() != 1 or len(layer._parameters) != 1:
        return None
    norm = nn.RMSNorm(len(weight), eps, device="meta")
    norm.weight = weight
    if weight.device.type == "meta":
        layer = deepcopy(layer).to_empty(device="cpu")
        norm_on_cpu = nn.RMSNorm(len(weight), eps, device="cpu")
        layer.weight.data.fill_(0.5)
        norm_on_cpu.weight.data.fill_(0.5)
        return norm if same_outputs(layer, norm_on_cpu) else None
    return norm if same_outputs(layer, norm) else None


def same_outputs(first: Any, second: Any) -> bool:
    """Whether two norms give equal outputs for drawn features."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(4, len(second.weight), generator=draw, device="cpu").to(second.weight)
    with torch.no_grad():
        return torch.allclose(first(x), second(x), atol=1e-5)


def library_layers(backbone: Backbone, plain: Backbone) -> Backbone:
    """Undo ``torch_layers`` for linear layers, in place, so that transformers can read what is saved.

    Args:
        backbone: The model.
        plain: A model of the same config as transformers makes it, whose modules are used.
    """
    for name, module in plain.named_modules():
        if type(module).__name__ == "Conv1D":
            linear: Any = backbone.get_submodule(name)
            module.weight = nn.Parameter(linear.weight.detach().t().contiguous())
            module.bias = linear.bias
            backbone.set_submodule(name, module)
    return backbone
