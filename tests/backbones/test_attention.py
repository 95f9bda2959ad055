"""Attention layers of timm with learned tokens, against the plain layers."""

import copy
import pickle
from typing import Any

import pytest
import timm
import torch
from timm.layers import AttentionRope, apply_rot_embed_cat
from torch import Tensor, nn

from backbones.attention import ExtendedAttention, can_extend, extend_attention

TINY: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
MODELS = {
    "vit": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "dinov3": ("vit_small_patch16_dinov3", {}),
    "eva02": ("eva02_tiny_patch14_224", {}),  # bare weight, bias apart
    "eva02_split": ("eva02_base_patch14_448", {}),  # q, k, v apart, norm of the output
    "rope_by_head": ("vit_small_patch16_rope_mixed_224", {}),
    "beit": ("beit_base_patch16_224", {}),
    "beit_shared_bias": ("beit_base_patch16_224", {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}),
    "relpos": ("vit_relpos_base_patch16_cls_224", {"class_token": True}),
    "relpos_shared": ("vit_srelpos_small_patch16_224", {}),
    "naflex": ("naflexvit_base_patch16_gap", {}),
}


def build(model: str) -> Any:
    name, args = MODELS[model]
    torch.manual_seed(0)
    backbone = timm.create_model(name, num_classes=3, **TINY | args).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return backbone


def calls(backbone: Any) -> list[tuple[Any, Tensor, dict[str, Any]]]:
    """Attention layers of a forward pass, with their inputs and the other arguments of their calls."""
    found: list[tuple[Any, Tensor, dict[str, Any]]] = []
    for block in backbone.blocks:
        block.attn.register_forward_pre_hook(lambda m, args, kw: found.append((m, args[0], kw)), with_kwargs=True)
    with torch.no_grad():
        backbone(torch.randn(2, 3, 32, 32))
    return found


@pytest.mark.parametrize("model", MODELS)
def test_extended_by_nothing(model: str) -> None:
    backbone, images = build(model), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = backbone(images)
        for block in backbone.blocks:
            assert can_extend(block)
            assert extend_attention(block) is extend_attention(block) is block.attn
        torch.testing.assert_close(backbone(images), expected, atol=1e-5, rtol=1e-5)
        for other in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
            assert isinstance(other.blocks[0].attn, ExtendedAttention)
            assert torch.equal(other(images), backbone(images))


class Rows(nn.Module):
    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens


def with_tokens(attn: Any, x: Tensor, options: dict[str, Any], tokens: Tensor, place: int) -> Tensor:
    """Output of a plain layer for a sequence with more tokens, which have neither rotation nor position bias."""
    attn = copy.deepcopy(attn)
    attn._forward_pre_hooks.clear()
    count, n = tokens.shape[1], x.shape[1]
    x = torch.cat([x[:, :place], tokens.expand(len(x), -1, -1), x[:, place:]], dim=1)
    where = torch.tensor([*range(place), *range(place + count, n + count)])
    options = dict(options)
    if options.get("rope") is not None:
        attn.num_prefix_tokens += count
    for name in options.keys() & {"shared_rel_pos", "shared_rel_pos_bias"}:
        bias = options[name]
        if getattr(attn, "relative_position_bias_table", None) is not None:
            bias, attn.relative_position_bias_table = attn._get_rel_pos_bias(), None
        if getattr(attn, "rel_pos", None) is not None:
            bias, attn.rel_pos = attn.rel_pos.get_bias(), None
        options[name] = torch.zeros(1, attn.num_heads, n + count, n + count)
        options[name][:, :, where[:, None], where] = bias
    return attn(x, **options)


@pytest.mark.parametrize("model", MODELS)
def test_tokens_as_keys_and_in_the_sequence(model: str) -> None:
    backbone, tokens = build(model), torch.randn(1, 4, 48)
    for attn, x, options in calls(backbone):
        block: Any = nn.Module()
        block.attn, place = copy.deepcopy(attn), backbone.num_prefix_tokens
        block.attn._forward_pre_hooks.clear()
        extended = extend_attention(block)
        with torch.no_grad():
            expected = with_tokens(attn, x, options, tokens, place)
            plain = torch.cat([expected[:, :place], expected[:, place + 4 :]], dim=1)
            extended.prompts = (Rows(tokens),)
            torch.testing.assert_close(extended(x, **options), plain, atol=1e-5, rtol=1e-5)
            extended.prompts, extended.inserted = (), (place, 4)
            longer = torch.cat([x[:, :place], tokens.expand(len(x), -1, -1), x[:, place:]], dim=1)
            torch.testing.assert_close(extended(longer, **options), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_learned_keys_and_values_by_hand(groups: int) -> None:
    """They are not rotated, and t equal ones count as one with log t added to its score."""
    torch.manual_seed(0)
    block: Any = nn.Module()
    block.attn = attn = AttentionRope(48, 4, num_kv_heads=4 // groups, qkv_fused=False)
    x, rope, learned = torch.randn(2, 7, 48), torch.randn(6, 24), torch.randn(2, 4 // groups, 3, 12)
    extended = extend_attention(block)
    extended.kv_prompt = nn.Parameter(learned)
    q, k, v = (f(x).unflatten(2, (-1, 12)).transpose(1, 2) for f in (attn.q_proj, attn.k_proj, attn.v_proj))
    q, k = (torch.cat([t[:, :, :1], apply_rot_embed_cat(t[:, :, 1:], rope)], dim=2) for t in (q, k))
    for repeated in (0, 5):
        extended.repeated = repeated
        copies = [*range(7), *[6] * max(repeated - 1, 0)]  # of the last token, as long as there are no prompts
        keys = torch.cat([k[:, :, copies], learned[:1].expand(2, -1, -1, -1)], dim=2)
        values = torch.cat([v[:, :, copies], learned[1:].expand(2, -1, -1, -1)], dim=2)
        keys, values = (t.repeat_interleave(groups, dim=1) for t in (keys, values))
        out = (q @ keys.mT / 12**0.5).softmax(-1) @ values
        torch.testing.assert_close(extended(x, rope=rope), attn.proj(out.transpose(1, 2).flatten(2)), atol=1e-5, rtol=0)


def test_refusals() -> None:
    block = build("vit").blocks[0]
    extended = extend_attention(block)
    with pytest.raises(ValueError, match="prompts and an attention mask together"):
        extended(torch.zeros(1, 17, 48), is_causal=True)
    other: Any = nn.Module()
    assert not can_extend(other)
    other.attn = nn.Linear(4, 4)
    assert not can_extend(other)
