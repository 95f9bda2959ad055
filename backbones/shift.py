"""Places in the plain weights of a backbone for a constant that is added to the output of a layer."""

from typing import Any

import torch
from timm.layers import FrozenBatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.anatomy import ignores_key_bias, output_names, patch_positions, separate_bias
from backbones.flow import Flow
from backbones.inject import Backbone

Addition = tuple[Tensor, Tensor]  # a stored tensor, and what is added to it
BATCH_NORMS = (nn.modules.batchnorm._BatchNorm, FrozenBatchNormAct2d)


def add_to_output(backbone: Backbone, flow: Flow, name: str, shift: Tensor) -> bool:
    """Add a constant to the output of a layer by changing plain weights, here or in the layers that follow.

    Args:
        backbone: The network with plain layers, changed in place.
        flow: The layers that read the output of each layer.
        name: Name of the layer.
        shift: Constant of each channel (C,).

    Returns:
        Whether there is a place with exactly this effect; otherwise, nothing changes.
    """
    additions = places(backbone, flow, name, shift)
    for tensor, value in additions or ():
        tensor.add_(value)
    return additions is not None


def places(backbone: Backbone, flow: Flow, name: str, shift: Tensor) -> list[Addition] | None:
    """Additions to stored tensors that add ``shift`` (C,) to the output of a layer; None if there are none."""
    layer: Any = backbone.get_submodule(name)
    names = output_names(layer)
    bias: Tensor | None = getattr(layer, names[1], None) if names else None
    if bias is not None:
        return [(bias, shift)]
    biases = separate_bias(backbone, name)
    if biases is not None:
        query, _, value = shift.chunk(3)
        return [(biases[0], query), (biases[1], value)] if ignores_key_bias(backbone, name) else None
    positions = patch_positions(backbone, name)
    if positions is not None:
        return [(positions, shift)]
    found: list[Addition] = []
    for follower in flow.readers.get(name, ()):
        additions = through(backbone, flow, follower, shift)
        if additions is None:
            return None
        found += additions
    return found or None


def through(backbone: Backbone, flow: Flow, name: str, shift: Tensor) -> list[Addition] | None:
    """Additions that have the effect of ``shift`` (C,) at the input of a layer; None if there are none."""
    layer: Any = backbone.get_submodule(name)
    mean: Any = layer.running_mean if isinstance(layer, BATCH_NORMS) else None
    if mean is not None:
        return [(mean, -shift)]
    if type(layer) is nn.Linear:
        return places(backbone, flow, name, layer.weight @ shift)
    # zero padding has no shift, so that the shift of the output would differ at the border
    if type(layer) is nn.Conv2d and layer.padding in ((0, 0), "valid"):
        constant = shift.view(1, -1, 1, 1).expand(1, -1, *layer.kernel_size)
        output: Tensor = F.conv2d(constant, layer.weight, groups=layer.groups)
        return places(backbone, flow, name, torch.flatten(output))
    return None
