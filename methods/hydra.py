"""Hydra: Multi-head Low-rank Adaptation for Parameter Efficient Fine-tuning (arXiv:2309.06922).

``y = f + s (B1 A1 x + B2 A2 f)`` with ``f = W0 x + b0``: one low-rank branch parallel to a frozen layer, one behind it.
"""

from typing import Any

import torch
from torch import Tensor, nn

from backbones.blocks import attention_blocks, branch_outputs
from backbones.inject import AdapterModule, Backbone, attach, detach, modules_with
from methods.core.base import PEFTMethod


class Branch(nn.Module):
    """Linear map through r channels, ``up(drop(down(x)))``; it starts at 0.

    Args:
        inputs: Channels of x.
        rank: Channels r in the middle.
        outputs: Channels of the output.
        dropout: Probability of dropping a channel in the middle.
        bias: Whether both layers have biases.
    """

    def __init__(self, inputs: int, rank: int, outputs: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(inputs, rank, bias), nn.Linear(rank, outputs, bias)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.up.weight)
        for layer in (self.down, self.up):
            if bias:
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.dropout(self.down(x)))

    def matrix(self) -> Tensor:
        """Matrix (out, in) of the map."""
        return self.up.weight @ self.down.weight

    def constant(self) -> Tensor:
        """Output (out,) for x = 0."""
        return self.up.weight @ self.down.bias + self.up.bias


class HydraBranches(AdapterModule):
    """Both branches of a linear layer, which are added to its output with a factor s."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        # without biases if the layer has none, because no merged layer could hold them
        sizes = (rank, linear.out_features, dropout, linear.bias is not None)
        self.parallel, self.sequential = Branch(linear.in_features, *sizes), Branch(linear.out_features, *sizes)
        self.scale = scale

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return torch.add(output, self.parallel(args[0]) + self.sequential(output), alpha=self.scale)

    def merge_into(self, linear: nn.Linear) -> None:
        """Merge: ``W = W0 + s (P + S W0)`` and ``b = b0 + s (p + s' + S b0)`` for maps P x + p and S f + s'."""
        S = self.sequential.matrix()
        if linear.bias is not None:
            constants = self.parallel.constant() + self.sequential.constant()
            linear.bias.add_(constants + S @ linear.bias, alpha=self.scale)
        linear.weight.add_(self.parallel.matrix() + S @ linear.weight, alpha=self.scale)


class Hydra(PEFTMethod):
    """Multi-head low-rank adaptation (Kim et al., 2023, arXiv:2309.06922).

    The branches are at the last layer of each attention and of each MLP. The merge of the published code takes the
    weight of the MLP for that of the attention; here each layer takes its own, as in the paper.

    Args:
        hydra_rank: Rank r of each branch; 2 in the paper's VTAB-1k.
        hydra_scale: Factor s of both branches; the published code sets it for each dataset.
        hydra_dropout: Probability of dropping a channel between the two layers of a branch.
    """

    def __init__(
        self, hydra_rank: int = 2, hydra_scale: float = 1.0, hydra_dropout: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if hydra_rank < 1:
            raise ValueError(f"hydra_rank={hydra_rank}: expected a positive rank")
        if hydra_scale <= 0:
            raise ValueError(f"hydra_scale={hydra_scale}: expected a positive number; at 0 nothing would train")
        if not 0 <= hydra_dropout < 1:
            raise ValueError(f"hydra_dropout={hydra_dropout}: expected a probability of at least 0 and below 1")
        self.hydra_rank, self.hydra_scale, self.hydra_dropout = hydra_rank, hydra_scale, hydra_dropout

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        layers = [layer for block in attention_blocks(backbone) for layer in branch_outputs(block)]
        layers = [layer for layer in layers if isinstance(layer, nn.Linear)]
        if not layers:
            raise ValueError(
                "Hydra adds branches to the last linear layers of attention and MLP, and "
                f"{type(backbone).__name__} has none whose names are known: use lora, ssf or bitfit"
            )
        for layer in layers:
            attach(layer, "hydra", HydraBranches(layer, self.hydra_rank, self.hydra_scale, self.hydra_dropout))

    def merge_into(self, backbone: Backbone) -> None:
        for layer in modules_with(backbone, "hydra"):
            op: Any = detach(layer, "hydra")
            op.merge_into(layer)
        super().merge_into(backbone)
