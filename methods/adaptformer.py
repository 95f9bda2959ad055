"""AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition (arXiv:2205.13535).

``x' = x + MLP(norm(x)) + s up(relu(down(x)))``: a bottleneck parallel to each MLP.
"""

from typing import Any

import torch
from torch import Tensor, nn

from backbones.blocks import channels_first, pre_norm_blocks, width
from backbones.inject import AdapterModule, Backbone, check_free
from methods.core.base import PEFTMethod


class ParallelBottleneck(AdapterModule):
    """Adds ``scale * up(drop(relu(down(x))))`` of a residual stream x to the branch that x feeds.

    Args:
        dim: Channels C of the stream.
        hidden: Width h of the bottleneck.
        scale: Factor s of the update, dimensionless.
        dropout: Probability of dropping a hidden unit.
        bias: Whether both projections have biases.
        spatial: Whether the stream is (B, C, H, W) instead of (B, ..., C).
    """

    def __init__(self, dim: int, hidden: int, scale: float, dropout: float, bias: bool, spatial: bool = False) -> None:
        super().__init__()
        self.spatial = spatial
        self.down, self.up = nn.Linear(dim, hidden, bias), nn.Linear(hidden, dim, bias)  # down: Kaiming uniform
        self.dropout, self.scale = nn.Dropout(dropout), scale
        self.stream: Tensor | None = None  # x between the two hooks of one forward pass
        nn.init.zeros_(self.up.weight)
        if bias:
            nn.init.zeros_(self.down.bias)
            nn.init.zeros_(self.up.bias)

    def keep_input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.stream = args[0]

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        assert self.stream is not None, "norm2 was not called before the MLP"
        hidden = torch.relu(self.down(self.stream.movedim(1, -1) if self.spatial else self.stream))
        self.stream = None
        update = self.up(self.dropout(hidden))
        return torch.add(output, update.movedim(-1, 1) if self.spatial else update, alpha=self.scale)


class AdaptFormer(PEFTMethod):
    """AdaptFormer (Chen et al., NeurIPS 2022, arXiv:2205.13535).

    Args:
        adaptformer_dim: Width h of the bottleneck; 64 in the paper, 8 in the VTAB-1k comparisons.
        adaptformer_scale: Factor s of the adapter's output; the VTAB-1k comparisons search it for each dataset.
        adaptformer_dropout: Probability of dropping a hidden unit.
        adaptformer_bias: Whether both projections have biases, as in the paper's code; PETL-ViT has none.
    """

    shardable = True
    mergeable = False
    unmergeable = "its adapters are not linear"

    def __init__(
        self,
        adaptformer_dim: int = 8,
        adaptformer_scale: float = 0.1,
        adaptformer_dropout: float = 0.1,
        adaptformer_bias: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if adaptformer_dim <= 0:
            raise ValueError(f"adaptformer_dim={adaptformer_dim}: expected a bottleneck of at least 1 channel")
        if not 0 <= adaptformer_dropout < 1:
            raise ValueError(
                f"adaptformer_dropout={adaptformer_dropout}: expected a probability of at least 0 and below 1"
            )
        if adaptformer_scale <= 0:
            raise ValueError(
                f"adaptformer_scale={adaptformer_scale}: expected a positive number; at 0 nothing would train"
            )
        self.adaptformer_dim, self.adaptformer_scale = adaptformer_dim, adaptformer_scale
        self.adaptformer_dropout, self.adaptformer_bias = adaptformer_dropout, adaptformer_bias

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        for block in pre_norm_blocks(backbone, "AdaptFormer adds a branch to the MLP of each block"):
            check_free(block, "adaptformer")
            block.adaptformer = op = ParallelBottleneck(
                width(block),
                self.adaptformer_dim,
                self.adaptformer_scale,
                self.adaptformer_dropout,
                self.adaptformer_bias,
                channels_first(block),
            )
            # x2 = x1 + drop_path(mlp(norm2(x1))) + s A(x1): the input of A is x1, and drop path does not drop A
            block.norm2.register_forward_pre_hook(op.keep_input)
            block.drop_path2.register_forward_hook(op.hook)
