"""Attentive pooling: one learned query attends to all tokens of a clip."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AttentivePool(nn.Module):
    """Cross-attention of one learned query to tokens, without a residual and an MLP.

    Order and sizes are those of the video code of DyT (arXiv:2403.11808): a LayerNorm each for the query, the keys and
    the values, no bias of the keys, and a query that starts at zero.

    Args:
        width: Channels D of a token.
        heads: Attention heads; must divide D.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        self.norm_q, self.norm_k, self.norm_v = (nn.LayerNorm(width, eps=1e-6) for _ in range(3))
        self.q, self.v, self.proj = (nn.Linear(width, width) for _ in range(3))
        self.k = nn.Linear(width, width, bias=False)
        for layer in (self.q, self.k, self.v, self.proj):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """One feature (B, D) of tokens (B, N, D)."""
        # copied first, because the counter of FLOPs cannot follow a parameter as the input of a layer
        query = self.norm_q(self.query.repeat(len(tokens), 1, 1))
        projected = self.q(query), self.k(self.norm_k(tokens)), self.v(self.norm_v(tokens))
        q, k, v = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in projected)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).squeeze(1)
