"""Hierarchical Side-Tuning for Vision Transformers (arXiv:2310.05393).

``t' = t + attend(t, meta) + grid; t'' = t' + MLP(t')``: a side pyramid network fed by the blocks of a frozen ViT. Only
the pyramid feeds the head.
"""

import math
import re
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.anatomy import drop_path_rate, drops_patches, token_grid, token_sequence
from backbones.attention import can_extend, extend_attention
from backbones.inject import Backbone
from methods.core.frozen import FrozenBackbone


class MetaTokens(nn.Module):
    """Learned tokens before the patches, new ones in every block; their outputs summarise the block.

    They follow the prefix tokens, which the backbone removes from its intermediate outputs.

    Args:
        depth: Number L of blocks.
        length: Number M of tokens per block.
        dim: Width D of a token.
        prefix: Number of prefix tokens of the backbone.
    """

    def __init__(self, depth: int, length: int, dim: int, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix
        bound = math.sqrt(6 / (length * dim + dim))  # Xavier uniform of one block's tokens (1, M, D)
        # one tensor for all blocks, so that weight decay applies, as in the released code
        self.tokens = nn.Parameter(torch.empty(depth, length, dim).uniform_(-bound, bound))

    def pre_hook(self, index: int, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Input of block ``index``, with its meta tokens in the place of those of the previous block."""
        x, *rest = args
        tokens = self.tokens[index].to(x.dtype).expand(x.shape[0], -1, -1)
        patches = x[:, self.prefix + (tokens.shape[1] if index else 0) :]
        return torch.cat([x[:, : self.prefix], tokens, patches], dim=1), *rest


class Shrink(nn.Module):
    """Convolutions from a map (B, C', H, W) to the normed tokens (B, h w, C) of a smaller map."""

    def __init__(self, dim: int, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x = self.layers(x)
        return self.norm(x.flatten(2).mT), (x.shape[2], x.shape[3])


class SideBlock(nn.Module):
    """Fuses one ViT block into the side tokens: cross-attention to meta tokens, addition of patches, MLP.

    Args:
        dim: Width C of the stage.
        heads: Attention heads.
        drop_path: Probability of dropping a branch for an image.
    """

    def __init__(self, dim: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, t: Tensor, meta: Tensor, grid: Tensor) -> Tensor:
        """New side tokens (B, n, C).

        Args:
            t: Side tokens (B, n, C).
            meta: Meta tokens (B, M, C) of the ViT block.
            grid: Patches of the ViT block, resized to the grid of the side tokens (B, n, C).
        """
        context = torch.cat([meta, grid.mean(1, keepdim=True)], dim=1)
        t = t + self.drop_path(self.attend(self.norm1(t), context)) + grid
        return t + self.drop_path(self.fc2(F.gelu(self.fc1(self.norm2(t)))))

    def attend(self, t: Tensor, context: Tensor) -> Tensor:
        """Cross-attention of tokens (B, n, C) to the context (B, M + 1, C); its cost is linear in n."""
        projected = self.q(t), self.k(context), self.v(context)
        q, k, v = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in projected)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Stage(nn.Module):
    """Stage of the pyramid with one resolution, and a side block for each of its ViT blocks.

    Args:
        shrink: Layers from the map of the previous stage to the tokens of this one.
        dim: Width C of the stage.
        heads: Attention heads.
        width: Width D of the ViT.
        meta_tokens: Number M of meta tokens.
        drop_paths: Drop path rates of the ViT blocks, which are also those of the side blocks.
    """

    def __init__(
        self, shrink: Shrink, dim: int, heads: int, width: int, meta_tokens: int, drop_paths: list[float]
    ) -> None:
        super().__init__()
        self.shrink = shrink
        # one projection for all blocks of the stage, patches and meta tokens alike
        self.bridge = nn.Linear(width, dim) if drop_paths else nn.Identity()
        self.meta_norms = nn.ModuleList(nn.LayerNorm(dim) if meta_tokens else nn.Identity() for _ in drop_paths)
        self.blocks = nn.ModuleList(SideBlock(dim, heads, rate) for rate in drop_paths)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor, outputs: Iterator[Tensor], grid: tuple[int, int]) -> Tensor:
        """Map (B, C, h, w) of this stage from the previous map and the next outputs (B, M + gh gw, D) of the ViT."""
        t, size = self.shrink(x)
        patches = grid[0] * grid[1]
        for block, meta_norm, output in zip(self.blocks, self.meta_norms, outputs, strict=False):  # rest: next stages
            # projected before resizing, which is cheaper; the result is equal, because bilinear weights add up to 1
            bridged = self.bridge(output)
            meta, fine = bridged.tensor_split([bridged.shape[1] - patches], dim=1)
            fine = F.interpolate(fine.mT.unflatten(2, grid), size, mode="bilinear").flatten(2).mT
            t = block(t, meta_norm(meta), fine)
        return self.norm(t).mT.unflatten(2, size)


class SideNetwork(nn.Module):
    """Side network of four stages with strides 4, 8, 16 and 32.

    Args:
        channels: Channels of an image.
        dims: Width of each stage.
        heads: Attention heads of each stage.
        width: Width D of the ViT.
        meta_tokens: Number M of meta tokens per ViT block.
        rates: Drop path rates of the ViT blocks of each stage.
    """

    def __init__(
        self, channels: int, dims: list[int], heads: list[int], width: int, meta_tokens: int, rates: list[list[float]]
    ) -> None:
        super().__init__()
        stem = (
            nn.Conv2d(channels, dims[0], 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(dims[0]),
            nn.ReLU(),
            nn.Conv2d(dims[0], dims[0], 2, stride=2),
        )
        downs = (Shrink(dim, nn.Conv2d(last, dim, 3, stride=2, padding=1)) for last, dim in pairwise(dims))
        shrinks = [Shrink(dims[0], *stem), *downs]
        self.stages = nn.ModuleList(
            Stage(shrink, dim, count, width, meta_tokens, drop_paths)
            for shrink, dim, count, drop_paths in zip(shrinks, dims, heads, rates, strict=True)
        )
        self.apply(init_weights)

    def forward(self, x: Tensor, outputs: Iterable[Tensor], grid: tuple[int, int]) -> list[Tensor]:
        """Maps (B, C_s, H / stride, W / stride) from images (B, 3, H, W) and the outputs of all ViT blocks."""
        maps, remaining = [], iter(outputs)
        for stage in self.stages:
            x = stage(x, remaining, grid)
            maps.append(x)
        return maps


def init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels)))
    if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
        nn.init.zeros_(module.bias)


class HST(FrozenBackbone):
    """Hierarchical side-tuning (Lin et al., 2023, arXiv:2310.05393).

    Args:
        hst_dims: Widths of the four stages; the paper's dense tasks use 64, 128, 256, 384.
        hst_heads: Attention heads of each stage.
        hst_ends: Index of the last ViT block of each stage; by default each stage gets about as many blocks.
        meta_tokens: Meta tokens of each ViT block; 0 for none.
        tune_norm: Whether the norms of the ViT blocks train. Without them and without meta tokens, the whole backbone
            is frozen.
    """

    mergeable = False
    unmergeable = "its side network stays beside the backbone"

    def __init__(
        self,
        hst_dims: list[int] = [32, 48, 64, 72],  # noqa: B006
        hst_heads: list[int] = [2, 4, 8, 12],  # noqa: B006
        hst_ends: list[int] | None = None,
        meta_tokens: int = 1,
        tune_norm: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if len(hst_dims) != 4 or min(hst_dims) < 1:
            raise ValueError(f"hst_dims={hst_dims}: expected four widths, of strides 4, 8, 16 and 32")
        if len(hst_heads) != 4 or min(hst_heads) < 1 or any(d % h for d, h in zip(hst_dims, hst_heads, strict=True)):
            raise ValueError(f"hst_heads={hst_heads}: expected four numbers that divide hst_dims={hst_dims}")
        if meta_tokens < 0:
            raise ValueError(f"meta_tokens={meta_tokens}: expected a number of tokens, or 0 for none")
        self.hst_dims, self.hst_heads, self.hst_ends = list(hst_dims), list(hst_heads), hst_ends
        self.meta_tokens, self.tune_norm = meta_tokens, tune_norm

    def heads(self) -> dict[str, nn.Module]:
        heads = super().heads()
        # without attention pooling, because the side network averages its own map
        return {name: head for name, head in heads.items() if name.split(".")[1:2] != ["attn_pool"]}

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        sequence = token_sequence(backbone, "HST reads the patches of a plain ViT")
        if len(self.head_names) > 1 or drops_patches(backbone):
            raise ValueError(
                "HST needs a ViT with one classifier and all of its patches: leave distillation and patch_drop_rate out"
            )
        if self.tune_norm and not all(hasattr(block, "norm2") for block in sequence.blocks):
            raise ValueError(
                f"tune_norm=True: the blocks of {type(backbone).__name__} have parallel branches, and so no norm1 and "
                "norm2; pass --model.tune_norm false"
            )
        starts = [-1, *self.ends(depth := len(sequence.blocks))]
        shares = [[drop_path_rate(b) for b in sequence.blocks[i + 1 : j + 1]] for i, j in pairwise(starts)]
        sizes = (self.hst_dims, self.hst_heads, sequence.width, self.meta_tokens)
        self.side = SideNetwork(backbone.in_chans, *sizes, shares)
        if self.meta_tokens:
            self.meta = MetaTokens(depth, self.meta_tokens, sequence.width, sequence.prefix)
            for index, block in enumerate(sequence.blocks):
                block.register_forward_pre_hook(partial(self.meta.pre_hook, index))
                if can_extend(block):
                    extend_attention(block).inserted = (sequence.prefix, self.meta_tokens)
        if self.dense:
            self.read_pyramid(self.hst_dims)
        elif self.head_names:
            self.resize_head(self.hst_dims[-1], batch_norm=True)

    def ends(self, depth: int) -> list[int]:
        """Index of the last block of each stage."""
        # the released code uses the ends of ViT-B for ViT-L too, and so leaves half of its blocks unused
        ends = self.hst_ends or [round((stage + 1) * depth / 4) - 1 for stage in range(4)]
        if len(ends) != 4 or ends != sorted(ends) or ends[0] < -1 or ends[-1] != depth - 1:
            raise ValueError(f"hst_ends={ends}: expected four ascending block indices, the last one {depth - 1}")
        return ends

    def trainable_names(self) -> Iterable[str]:
        norms = [n for n, _ in self.backbone.named_parameters() if re.match(r"blocks\.\d+\.norm[12]\.", n)]
        return [*super().trainable_names(), *(norms if self.tune_norm else [])]

    def frozen_layers(self) -> str:
        if self.meta_tokens or self.tune_norm:
            raise ValueError(
                f"with meta_tokens={self.meta_tokens} and tune_norm={self.tune_norm} HST trains in the backbone: pass "
                "--model.meta_tokens 0 --model.tune_norm false"
            )
        return "image and every block"

    def frozen_features(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs = self.backbone.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
        return x, *(output.contiguous() for output in outputs)  # so that cached features give bit-equal results

    def forward_frozen(self, features: tuple[Tensor, ...]) -> Any:
        return self.predict_from(self.head_input(self.pyramid(*features)))

    def pyramid(self, x: Tensor, *outputs: Tensor) -> list[Tensor]:
        return self.side(x, outputs, token_grid(self.backbone, (x.shape[2], x.shape[3])))

    def head_input(self, maps: list[Tensor]) -> Any:
        """All maps for a dense task, otherwise the tokens (B, n, C) of the last one."""
        return maps if self.dense else maps[-1].flatten(2).mT

    def features(self, x: Tensor) -> Any:
        return self.head_input(self.pyramid(*self.frozen_features(x)))

    def predict_from(self, features: Any) -> Any:
        if self.dense:
            return super().predict_from(features)
        return self.backbone.head(features.mean(1))
