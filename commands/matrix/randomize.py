"""Random weights that are as far from zero as trained ones."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# Parameters without a gradient in any network. All but the last are added to each score of a softmax, which does not
# change it; the last scale the deviation from the mean of a single channel, which is 0.
NO_GRADIENT = (
    "attn.k.bias",
    "attn.wk.bias",
    "e_mhsa.k.bias",
    "token_mixer.k.conv.bias",
    "token_mixer.k.bn.bias",
    "attn.k.conv.bias",
    "attn.k.bn.bias",
    "attn.norm_k.bias",
    "attn.key.norm.bias",
    "attn.proj_l.bias",
    "attn.pos_proj.bias",
    "token_mixer.talking_head1.bias",
    "rel_pos.mlp.fc2.bias",
    "meta_mlp.fc2.bias",
    "mixer.A",
    "attn.attn.norm1.weight",
    "attn.attn.norm2.weight",
)


@torch.no_grad()
def randomize(model: nn.Module, size: int) -> nn.Module:
    """Give a network the values of a trained one where a fresh one has zeros, so that all layers get gradients.

    Zeros and very small values (classifiers, class tokens, biases) are drawn from +-0.1. Layer scales and scales of
    norms that start near 0 are drawn from 0.4 to 0.6. BatchNorm gets the statistics of random images.

    Args:
        model: A network of ``build``; it is changed and returned in eval mode.
        size: Side of the images in pixels.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if 2 * parameter.count_nonzero() < parameter.numel() and parameter.any():
                parameter.add_(torch.empty_like(parameter).uniform_(-0.1, 0.1))  # an identity matrix, for example
            if parameter.abs().max() >= 1e-2:
                continue
            constant = bool((parameter == parameter.flatten()[0]).all())
            if constant and (parameter.any() or is_scale(model, name)):
                parameter.uniform_(0.4, 0.6)
            else:
                parameter.uniform_(-0.1, 0.1)
        set_statistics(model, torch.randn(4, 3, size, size))
    # LeViT, EfficientFormer, TinyViT and others keep attention biases of the first forward pass in eval mode
    return model.train().eval()


def is_scale(model: nn.Module, name: str) -> bool:
    """Whether a parameter multiplies the channels of a norm, or is a single gain."""
    parameter = model.get_parameter(name)
    return parameter.numel() == 1 or (parameter.ndim == 1 and name.endswith(".weight"))


def set_statistics(model: nn.Module, images: Tensor) -> None:
    """Set the running statistics of all BatchNorm layers from one batch, without dropout."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        # a channel without variance would be divided by the square root of eps
        assert norm.running_var is not None
        norm.running_var.lerp_(norm.running_var.mean(), 0.5)
        norm.eval()
