"""DiffFit: Unlocking Transferability of Large Diffusion Models via Simple Parameter-Efficient Fine-Tuning (2304.06648).

``x + gamma1 attn(norm1(x))`` and ``x + gamma2 mlp(norm2(x))`` with vectors gamma of ones, which train together with all
biases and norms.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from backbones.anatomy import NORMS, output_names, owner
from backbones.blocks import branch_outputs, pre_norm_blocks
from backbones.inject import AdapterModule, Backbone, attach, detach, modules_with
from methods.core.base import PEFTMethod

USE = "DiffFit scales both branches of each block"


class BranchScale(AdapterModule):
    """Factor gamma of each channel (C,) of a branch, applied to the output of the branch's last layer.

    This is equal to a factor at the end of the branch, because layer scale and drop path are between them, and all
    three multiply channels.
    """

    def __init__(self, channels: int, spatial: bool) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))
        self.spatial = spatial  # whether the output is (B, C, H, W) instead of (B, ..., C)

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        gamma = self.gamma.to(output.dtype)  # otherwise a bf16 feature would become fp32
        return output * (gamma[:, None, None] if self.spatial else gamma)


class DiffFit(PEFTMethod):
    """Biases, norms and scales of branches train, DiffFit (Xie et al., ICCV 2023, arXiv:2304.06648).

    The paper also trains the class embedding of a diffusion model; here the head of the task takes its place. The
    scales are vectors, as in the code of the study arXiv:2409.16434 for ViT.
    """

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        layers = [layer for block in pre_norm_blocks(backbone, USE) for layer in branch_outputs(block)]
        for layer in layers:
            if output_names(layer) == ("weight", "bias"):
                attach(layer, "difffit", BranchScale(len(layer.weight), isinstance(layer, nn.Conv2d)))

    def trainable_names(self) -> Iterable[str]:
        names = self.used_names()
        return [name for name in names if name.endswith("bias") or isinstance(owner(self.backbone, name), NORMS)]

    def merge_into(self, backbone: Backbone) -> None:
        for layer in modules_with(backbone, "difffit"):
            op: Any = detach(layer, "difffit")
            layer.weight.mul_(op.gamma.view(-1, *[1] * (layer.weight.dim() - 1)))
            if layer.bias is not None:
                layer.bias.mul_(op.gamma)
        super().merge_into(backbone)
