"""Parameters of a backbone that its outputs depend on."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from backbones.inject import Backbone


def used_parameters(backbone: Backbone, forward: Callable[[], Any]) -> set[str]:
    """Names of the parameters that an output depends on, found in the autograd graph of a forward pass, as in DDP.

    Args:
        backbone: The backbone. Its modes and gradient flags are restored.
        forward: Function that runs the backbone and returns a tensor or a sequence of tensors.
    """
    names = {p: name for name, p in backbone.named_parameters()}
    modes, flags = {m: m.training for m in backbone.modules()}, {p: p.requires_grad for p in names}
    for parameter in names:
        parameter.requires_grad_(parameter.is_floating_point())
    backbone.eval()  # otherwise statistics of BatchNorm would change
    with torch.enable_grad():
        outputs = forward()
    found: set[Any] = set()
    nodes = [t.grad_fn for t in ([outputs] if isinstance(outputs, Tensor) else outputs)]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in found:
            found.add(node)
            nodes += [following for following, _ in node.next_functions]
    backbone.train()  # some attentions keep tensors of an evaluation until the next training
    for module, mode in modes.items():
        module.training = mode
    for parameter, flag in flags.items():
        parameter.requires_grad_(flag)
    return {names[node.variable] for node in found if getattr(node, "variable", None) in names}
