"""LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning (arXiv:2206.06522).

``h_0 = D_0 x_0; h_i = S_i(g_i h_{i-1} + (1 - g_i) D_i x_i)`` with ``g_i = sigmoid(a_i / T)``, for the tokens x_i behind
block i of a frozen ViT, layers D_i to a smaller width and transformer blocks S_i. The features are ``U norm(h_L)``.
"""

import warnings
from math import gcd
from typing import Any, Self

import torch
from timm.layers import Attention, Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backbones.anatomy import token_sequence
from backbones.inject import Backbone, Tap, attach, check_free
from lightning_modules.task import Task
from methods.core.frozen import FrozenBackbone

TEMPERATURE = 0.1  # T of the gates


class SideBlock(nn.Module):
    """Pre-norm transformer block of tokens (B, N, c).

    Args:
        dim: Width c of a token.
        heads: Attention heads.
        ratio: Hidden channels of the MLP, by the width.
    """

    def __init__(self, dim: int, heads: int, ratio: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads=heads, qkv_bias=True)
        self.mlp = Mlp(dim, int(dim * ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class LadderNetwork(nn.Module):
    """Side network of L blocks that reads the tokens behind the blocks of a frozen ViT.

    Args:
        depth: Number L of side blocks.
        dim: Width C of a token of the ViT.
        width: Width c of a token of the side network.
        heads: Attention heads of a side block.
        ratio: Hidden channels of its MLP, by its width.
    """

    def __init__(self, depth: int, dim: int, width: int, heads: int, ratio: float) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(dim, width) for _ in range(depth + 1))
        self.gates = nn.Parameter(torch.zeros(depth))
        self.blocks = nn.ModuleList(SideBlock(width, heads, ratio) for _ in range(depth))
        self.norm, self.up = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, dim)
        self.recomputes = False
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, first: Tensor, *maps: Tensor) -> Tensor:
        """Tokens (B, N, C) from those before the first block and behind L blocks, (B, N, C) each."""
        h = self.down[0](first)
        for gate, down, block, x in zip(
            (self.gates / TEMPERATURE).sigmoid(), self.down[1:], self.blocks, maps, strict=True
        ):
            h = gate.to(h.dtype) * h + (1 - gate).to(h.dtype) * down(x)
            h = checkpoint(block, h, use_reentrant=False) if self.recomputes else block(h)
        return self.up(self.norm(h))


class LST(FrozenBackbone):
    """Ladder side-tuning (Sung et al., NeurIPS 2022, arXiv:2206.06522), on vision transformers.

    The paper tunes T5; its ladder is the same here, on the blocks of a ViT. Side blocks start at random values, where
    the paper can also take them from the pruned weights of the backbone.

    Args:
        lst_reduction: The width of the side network is that of the backbone divided by this number.
        lst_heads: Attention heads of a side block; by default as many as the backbone has, or the largest number below
            it that divides both.
        lst_mlp_ratio: Hidden channels of the MLP of a side block, by its width.
        lst_blocks: Numbers, from 1, of the blocks of the ViT with a side block; by default all.
    """

    mergeable = False
    unmergeable = "its side network stays beside the backbone"

    def __init__(
        self,
        lst_reduction: int = 8,
        lst_heads: int | None = None,
        lst_mlp_ratio: float = 4.0,
        lst_blocks: list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value in {"lst_reduction": lst_reduction, "lst_heads": 1 if lst_heads is None else lst_heads}.items():
            if value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        if lst_mlp_ratio <= 0:
            raise ValueError(f"lst_mlp_ratio={lst_mlp_ratio}: expected a positive ratio")
        self.lst_reduction, self.lst_heads = lst_reduction, lst_heads
        self.lst_mlp_ratio, self.lst_blocks = lst_mlp_ratio, lst_blocks

    @classmethod
    def refusal(cls, task: type[Task]) -> str:
        reason = "LST gives one sequence of tokens, and here a head reads maps of blocks: use hst or lora"
        return reason if task.dense else super().refusal(task)

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        sequence = token_sequence(backbone, "LST reads the tokens of a plain ViT")
        numbers = self.numbers(len(sequence.blocks))
        width = sequence.width // self.lst_reduction
        heads = self.lst_heads or gcd(width, getattr(getattr(sequence.blocks[0], "attn", None), "num_heads", 1))
        if not width or width % heads:
            raise ValueError(
                f"lst_reduction={self.lst_reduction}: a width of {sequence.width} becomes {width}, which {heads} heads "
                "cannot share: choose another reduction, or lst_heads"
            )
        first = sequence.blocks[0]
        check_free(first, "lst_input")
        first.lst_input = Tap()
        first.register_forward_pre_hook(first.lst_input.keep_input)
        for number in numbers:
            attach(sequence.blocks[number - 1], "lst", Tap())
        self.side = LadderNetwork(len(numbers), sequence.width, width, heads, self.lst_mlp_ratio)

    def numbers(self, depth: int) -> list[int]:
        """Numbers of the blocks with a side block.

        Raises:
            ValueError: If they are no ascending numbers of blocks.
        """
        numbers = list(range(1, depth + 1)) if self.lst_blocks is None else self.lst_blocks
        if not numbers or numbers != sorted(set(numbers)) or not 1 <= numbers[0] <= numbers[-1] <= depth:
            raise ValueError(f"lst_blocks={numbers}: expected ascending numbers of blocks, each from 1 to {depth}")
        return numbers

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the side network; the backbone stays in eval mode."""
        super().train(mode)
        if self.adapted:
            self.backbone.eval()
        return self

    def on_fit_start(self) -> None:
        warnings.filterwarnings("ignore", ".*in eval mode at the start of training")  # on purpose in this method

    def recompute(self, enabled: bool) -> None:
        """Compute activations of the side network again, because gradients do not enter the backbone."""
        self.side.recomputes = enabled

    def frozen_layers(self) -> str:
        return f"input and blocks {', '.join(map(str, self.numbers(len(self.backbone.blocks))))}"

    def frozen_features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Tokens before the first block and behind each block with a side block, without an autograd graph."""
        with torch.no_grad():
            self.backbone.forward_features(x)
        blocks = self.backbone.blocks
        numbers = self.numbers(len(blocks))
        return blocks[0].lst_input.take(), *(blocks[number - 1].lst.take() for number in numbers)

    def forward_frozen(self, features: tuple[Tensor, ...]) -> Tensor:
        return self.predict_from(self.side(*features))

    def features(self, x: Tensor) -> Tensor:
        return self.side(*self.frozen_features(x)) if self.adapted else super().features(x)
