from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from backbones.prompted_swin import pass_prompts


class Tokens(nn.Module):
    """Prompts (1, 3, C) of a map."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(3, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens[None]


def swin_block(block: Any, x: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """One block on the map (H, W, C) and the prompts (P, C) of one image, window by window."""
    attn, (size, _), (shift, _), length = block.attn, block.window_size, block.shift_size, len(prompts)
    position = attn.relative_position_bias_table[attn.relative_position_index].permute(2, 0, 1)  # (heads, N, N)
    rolled = block.norm1(x).roll((-shift, -shift), (0, 1))
    out, seen = torch.empty_like(x), []
    for index in range((x.shape[0] // size) * (x.shape[1] // size)):
        row, column = (part * size for part in divmod(index, x.shape[1] // size))
        area = (slice(row, row + size), slice(column, column + size))
        tokens = torch.cat([block.norm1(prompts), rolled[area].reshape(size * size, -1)])
        q, k, v = attn.qkv(tokens).view(len(tokens), 3, attn.num_heads, -1).permute(1, 2, 0, 3)
        scores = q @ k.transpose(1, 2) * attn.scale
        scores[:, length:, length:] += position + (block.attn_mask[index] if shift else 0)
        tokens = attn.proj((scores.softmax(-1) @ v).transpose(0, 1).reshape(len(tokens), -1))
        seen.append(tokens[:length])
        out[area] = tokens[length:].view(size, size, -1)
    x = x + out.roll((shift, shift), (0, 1))
    prompts = prompts + torch.stack(seen).mean(0)
    return x + block.mlp(block.norm2(x)), prompts + block.mlp(block.norm2(prompts))


@pytest.mark.parametrize("deep", [True, False])
def test_prompts(deep: bool) -> None:
    """Each window contains the prompts of its own image, and the pooling includes them."""
    torch.manual_seed(0)
    # two stages of 8 x 8 (four windows, one block shifted) and 4 x 4 patches
    args: dict[str, Any] = {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}
    model: Any = timm.create_model("swin_tiny_patch4_window7_224", num_classes=3, **args).eval()
    for name, parameter in model.named_parameters():
        if "relative_position_bias_table" in name or "norm" in name:
            parameter.data.add_(torch.randn_like(parameter))
    pass_prompts(model, Tokens, deep)
    blocks = [block for stage in model.layers for block in stage.blocks]
    assert [block.prompt is not None for block in blocks] == ([True] * 4 if deep else [True, False, False, False])
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        logits, alone = model(images), torch.cat([model(image[None]) for image in images])
        torch.testing.assert_close(alone, logits, atol=1e-5, rtol=0)
        for image, expected in zip(images, logits, strict=True):
            x, prompts = model.patch_embed(image[None])[0], torch.empty(0)
            for stage in model.layers:
                if stage is not model.layers[0]:
                    merge = stage.downsample
                    corners = x.unflatten(1, (-1, 2)).unflatten(0, (-1, 2)).permute(0, 2, 3, 1, 4).flatten(2)
                    x, prompts = (merge.reduction(merge.norm(t)) for t in (corners, prompts.repeat(1, 4)))
                for block in stage.blocks:
                    prompts = block.prompt.tokens if block.prompt is not None else prompts
                    x, prompts = swin_block(block, x, prompts)
            pooled = model.norm(torch.cat([x.flatten(0, 1), prompts])).mean(0)
            torch.testing.assert_close(model.head.fc(pooled), expected, atol=1e-5, rtol=1e-5)
