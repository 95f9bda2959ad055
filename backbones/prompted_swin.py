"""Swin whose windows contain learned prompts, which its blocks and patch mergings pass on together with the maps.

``[x', p'] = block([x, p])``: a prompt joins each window of its image, and its next value is the mean over the windows.
"""

from collections.abc import Callable
from typing import Any

import torch
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock, WindowAttention
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.inject import Backbone, check_free, swap_class


class PromptedWindowAttention(WindowAttention):
    """Window attention where each window also contains the prompts of its image, without position bias or mask."""

    prompts: Tensor  # (B, P, C): normed prompts before a call, mean of their outputs over the windows after it

    def _get_rel_pos_bias(self) -> Tensor:
        length = self.prompts.shape[1]
        return F.pad(super()._get_rel_pos_bias(), (length, 0, length, 0))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        images, length, _ = self.prompts.shape
        # windows have the order (image, window); VPT's code copies as (window, image), which mixes images of a batch
        copies = self.prompts.repeat_interleave(x.shape[0] // images, dim=0)
        mask = None if mask is None else F.pad(mask, (length, 0, length, 0))
        x = super().forward(torch.cat([copies, x], dim=1), mask)
        self.prompts = x[:, :length].unflatten(0, (images, -1)).mean(dim=1)
        return x[:, length:]


class PromptedSwinBlock(SwinTransformerBlock):
    """Swin block that passes on prompts (B, P, C) with the map (B, H, W, C), or starts new prompts."""

    attn: PromptedWindowAttention
    prompt: nn.Module | None

    def forward(self, tokens: Any) -> Any:
        x, prompts = tokens if isinstance(tokens, tuple) else (tokens, None)
        if self.prompt is not None:
            prompts = self.prompt(x).expand(x.shape[0], -1, -1)
        self.attn.prompts = self.norm1(prompts)
        attended = self._attn(self.norm1(x)).flatten(1, 2)
        stream = torch.cat([prompts, x.flatten(1, 2)], dim=1)
        stream = stream + self.drop_path1(torch.cat([self.attn.prompts, attended], dim=1))
        stream = stream + self.drop_path2(self.mlp(self.norm2(stream)))
        del self.attn.prompts
        length = prompts.shape[1]
        return stream[:, length:].view_as(x), stream[:, :length]


class PromptedPatchMerging(PatchMerging):
    """Patch merging in which each prompt takes the place of all four patches."""

    def forward(self, tokens: Any) -> Any:
        x, prompts = tokens
        return super().forward(x), self.reduction(self.norm(prompts.repeat(1, 1, 4)))


def join_prompts(module: nn.Module, args: tuple[Any, ...], tokens: tuple[Tensor, Tensor]) -> Tensor:
    """Forward hook: map and prompts as one row (B, 1, H W + P, C), so that average pooling includes both."""
    x, prompts = tokens
    return torch.cat([x.flatten(1, 2), prompts], dim=1).unsqueeze(1)


def pass_prompts(backbone: Backbone, new_prompt: Callable[[int], nn.Module], deep: bool) -> None:
    """Let a Swin pass on prompts with its maps, through windows, patch merging and the final pooling.

    Args:
        backbone: The Swin, changed in place.
        new_prompt: Function from the width C of a block to a module, which gives the prompts (1 or B, P, C) of a map.
        deep: Whether each block starts new prompts, or only the first block.
    """
    blocks = [block for stage in backbone.layers for block in stage.blocks]
    for index, block in enumerate(blocks):
        check_free(block, "prompt")
        swap_class(block, PromptedSwinBlock)
        swap_class(block.attn, PromptedWindowAttention)
        block.prompt = new_prompt(block.dim) if deep or index == 0 else None
    for stage in backbone.layers[1:]:
        swap_class(stage.downsample, PromptedPatchMerging)
    blocks[-1].register_forward_hook(join_prompts)
