"""Norm of pooled features before a classifier."""

from typing import Any

import torch
from torch import Tensor, nn

from backbones.inject import Backbone


class FeatureNorm(nn.BatchNorm1d):
    """BatchNorm without an affine map, for features (B, C) before a classifier.

    AdaptFormer (arXiv:2205.13535) and HST (arXiv:2310.05393) have it, after the linear probe of MAE.

    Args:
        width: Features C.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6, affine=False)

    def pre_hook(self, module: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        """New input of the classifier, given its input (B, C).

        Raises:
            ValueError: In training with one row, which has no variance.
        """
        if self.training and len(args[0]) < 2:
            raise ValueError(
                "batch_size=1: the features are normed over the batch before the classifier, expected at least 2 "
                "images a device"
            )
        return self(args[0])

    @torch.no_grad()
    def merge_into(self, classifier: nn.Linear) -> None:
        """Change the weights of a classifier so that it needs no norm: ``W' = W / std``, ``b' = b - W' mean``."""
        mean: Any = self.running_mean
        variance: Any = self.running_var
        classifier.weight.mul_((variance + self.eps).rsqrt())
        if classifier.bias is None:
            classifier.bias = nn.Parameter(classifier.weight.new_zeros(classifier.out_features))
        classifier.bias.sub_(classifier.weight @ mean)


def norm_input(classifier: nn.Module, norm: FeatureNorm) -> None:
    """Norm the input of a classifier from now on."""
    classifier.register_forward_pre_hook(norm.pre_hook)


def merge_norms(backbone: Backbone) -> None:
    """Merge each norm before a classifier of the backbone into the classifier, in place."""
    for module in backbone.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            norm = getattr(hook, "__self__", None)
            if isinstance(norm, FeatureNorm):
                del module._forward_pre_hooks[key]
                norm.eval().merge_into(module)
