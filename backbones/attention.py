"""Self-attention of timm's plain transformers, extended by learned keys and values.

``softmax(q [k; k_p]^T / sqrt(d) + b) [v; v_p]``, where b is the position bias of the layer, and 0 for learned tokens.
"""

from math import log
from typing import Any

import torch
from timm.layers import Attention, AttentionRope, apply_rot_embed_cat
from timm.models import beit
from timm.models.eva import EvaAttention
from timm.models.vision_transformer_relpos import RelPosAttention
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.inject import check_free, swap_class


class ExtendedAttention:
    """Self-attention in which the tokens also attend to learned keys and values.

    Learned tokens have no position: they are not rotated, and their position bias is 0, as for the prompts of VPT in
    the windows of a Swin. A subclass adds this class to an attention layer of timm, whose weights it shares.
    """

    prompts: tuple[nn.Module, ...]  # tokens (1 or B, P, C) for an input; in a tuple, because another module owns them
    kv_prompt: Tensor | None  # (1, heads, Q, d) shared by keys and values, or (2, heads, Q, d)
    inserted: tuple[int, int]  # place and number of the learned tokens that the input itself contains
    repeated: int  # number of equal tokens that the last learned token replaces; 0 for none
    keeps: bool  # whether a pass keeps its keys and values in ``kept``, which further passes read in place of their own
    kept: tuple[Tensor, Tensor] | None

    # the methods take self as Any, because its layers are those of timm's attention, and differ between families
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.attend(*args, **kwargs)  # because the layers of timm differ in what their forward takes

    def attend(
        self: Any,
        x: Tensor,
        *,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        rope: Tensor | None = None,
        shared_rel_pos: Tensor | None = None,
        shared_rel_pos_bias: Tensor | None = None,
    ) -> Tensor:
        """Output (B, N, C) of the layer for tokens (B, N, C).

        Args:
            x: The tokens.
            attn_mask: Refused, because it has no entries for the learned tokens.
            is_causal: Refused too.
            rope: Rotary embedding of the patches (N', d'), with or without dimensions for images and heads.
            shared_rel_pos: Position bias ([1,] heads, N, N) that the blocks share.
            shared_rel_pos_bias: The same bias under BEiT's name.

        Raises:
            ValueError: If there is a mask.
        """
        if attn_mask is not None or is_causal:
            raise ValueError("prompts and an attention mask together: expected attention to all tokens")
        q, k, v = self.project(x)
        if rope is not None:
            q, k = (self.rotate(t, rope).type_as(v) for t in (q, k))
        own = self.kept is None
        k, v = (k, v) if own else self.kept
        if own and self.keeps:
            self.kept = k, v
        added = [[t.expand(x.shape[0], -1, -1, -1).to(k.dtype) for t in pair] for pair in self.added_keys_values(x)]
        if added:
            k, v = (torch.cat(parts, dim=2) for parts in zip((k, v), *added, strict=True))
            q = q.contiguous()  # otherwise this view of the projection keeps its k and v for the backward pass too
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
        shared = shared_rel_pos if shared_rel_pos is not None else shared_rel_pos_bias
        bias = self.score_bias(q, k, self.position_bias(shared) if own else None)  # these queries have no position
        dropout = self.attn_drop.p if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        return self.join_heads(out.transpose(1, 2).flatten(2), x)

    def project(self: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normed queries and keys, and values (B, heads, N, d), of tokens (B, N, C)."""
        if self.qkv is None:
            layers = (self.q_proj, self.k_proj, self.v_proj)
            q, k, v = (layer(x).unflatten(2, (-1, self.head_dim)).transpose(1, 2) for layer in layers)
        else:
            fused = self.fused(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
            q, k, v = fused.unbind(0)
        return (self.q_norm(q), self.k_norm(k), v) if hasattr(self, "q_norm") else (q, k, v)

    def fused(self: Any, x: Tensor) -> Tensor:
        """Queries, keys and values (B, N, 3 C) of tokens (B, N, C)."""
        if getattr(self, "q_bias", None) is None:
            return self.qkv(x)
        bias = torch.cat([self.q_bias, self.k_bias, self.v_bias])
        return self.qkv(x) + bias if self.qkv_bias_separate else F.linear(x, self.qkv.weight, bias)

    def rotate(self: Any, x: Tensor, rope: Tensor) -> Tensor:
        """Rotate the patches of queries or keys (B, heads, N, d), which follow prefix and learned tokens."""
        start = self.num_prefix_tokens + self.inserted[1]
        patches = apply_rot_embed_cat(x[:, :, start:], rope, half=self.rotate_half)
        return torch.cat([x[:, :, :start], patches], dim=2)

    def added_keys_values(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Pairs of keys and values (1 or B, heads, P, d) that are appended to those of the tokens x (B, N, C)."""
        pairs = [self.project(prompt(x))[1:] for prompt in self.prompts]
        if self.kv_prompt is not None:  # not normed
            pairs.append((self.kv_prompt[:1], self.kv_prompt[-1:]))
        return pairs

    def position_bias(self, shared: Tensor | None) -> Tensor | None:
        """Position bias ([1,] heads, N, N) of the plain layer, or None."""
        return None

    def score_bias(self, q: Tensor, k: Tensor, position: Tensor | None) -> Tensor | None:
        """Bias of the scores of queries and keys (B, heads, N, d), from the position bias of the plain layer."""
        bias, (place, count) = position, self.inserted
        if bias is not None:
            for dim in (-2, -1) if count else ():
                before, behind = bias.tensor_split([place], dim=dim)
                zeros = torch.zeros_like(bias.narrow(dim, 0, 1)).repeat_interleave(count, dim=dim)
                bias = torch.cat([before, zeros, behind], dim=dim)
            bias = F.pad(bias, (0, k.shape[2] - bias.shape[-1])).to(q.dtype)
        if not self.repeated:
            return bias
        # t equal keys are equal to one key with log t added to its score
        learned = 0 if self.kv_prompt is None else self.kv_prompt.shape[2]
        last = place + count if count else k.shape[2] - learned
        repeats = k.new_zeros(1, 1, 1, k.shape[2])
        repeats[..., last - 1] = log(self.repeated)
        return repeats if bias is None else bias + repeats

    def join_heads(self: Any, out: Tensor, x: Tensor) -> Tensor:
        """Output (B, N, C) of the layer from the values of all heads (B, N, heads d) and its input x."""
        if hasattr(self, "norm"):
            out = self.norm(out)
        if getattr(self, "gate", None) is not None:
            out = out * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(out))


class PlainExtended(ExtendedAttention, Attention):
    """Attention of ViT."""


class EvaExtended(ExtendedAttention, EvaAttention):
    """Attention of EVA and DINOv3."""


class RopeExtended(ExtendedAttention, AttentionRope):
    """Attention with rotary positions, for which keys and values can have fewer heads than queries."""


class BeitExtended(ExtendedAttention, beit.Attention):
    """Attention of BEiT."""

    def position_bias(self, shared: Tensor | None) -> Tensor | None:
        if self.relative_position_bias_table is None:
            return shared
        own = self._get_rel_pos_bias()
        return own if shared is None else own + shared


class RelPosExtended(ExtendedAttention, RelPosAttention):
    """Attention of ViT with relative positions."""

    def position_bias(self, shared: Tensor | None) -> Tensor | None:
        rel_pos: Any = self.rel_pos
        return shared if rel_pos is None else rel_pos.get_bias()


EXTENDED: dict[type[nn.Module], Any] = {
    Attention: PlainExtended,
    EvaAttention: EvaExtended,
    AttentionRope: RopeExtended,
    beit.Attention: BeitExtended,
    RelPosAttention: RelPosExtended,
}


def can_extend(block: Any) -> bool:
    """Whether the attention of a block can be extended."""
    attention = type(getattr(block, "attn", None))
    return attention in EXTENDED or issubclass(attention, ExtendedAttention)


def extend_attention(block: Any) -> Any:
    """Extend the attention of a block, at first by nothing. A second call has no effect."""
    attention: Any = block.attn
    if not isinstance(attention, ExtendedAttention):
        check_free(attention, "kv_prompt")
        swap_class(attention, EXTENDED[type(attention)])
        attention.prompts, attention.inserted, attention.repeated = (), (0, 0), 0
        attention.keeps, attention.kept = False, None
        attention.register_parameter("kv_prompt", None)
    return attention
