"""Token dispatch: which tokens skip a branch of a block, and an adapter that runs for all tokens (arXiv:2403.11808)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.inject import AdapterModule
from methods.layers.operation import Operation


class Adapter(nn.Module):
    """Bottleneck ``scale * up(drop(relu(down(x))))`` of tokens (B, N, D); its initial output is zero.

    Args:
        dim: Channels D of a token.
        hidden: Width d of the bottleneck.
        scale: Factor s, dimensionless.
        dropout: Probability of dropping a hidden unit.
    """

    def __init__(self, dim: int, hidden: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, hidden), nn.Linear(hidden, dim)  # down: Kaiming uniform
        self.dropout, self.scale = nn.Dropout(dropout), scale
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor, stream: Tensor) -> Tensor:
        """Update of tokens x. ``stream`` is the whole sequence; ``MixedAdapter`` uses it."""
        return self.scale * self.up(self.dropout(torch.relu(self.down(x))))


class MixedAdapter(nn.Module):
    """Adapter whose weights are mixed for each image from those of several adapters (Eq. 7 of the paper).

    Args:
        experts: Number E of adapters.
        router: Weights of the mixture: ``softmax`` of the E outputs of the router, or ``linear`` for the outputs.
        dim: Channels D of a token.
        hidden: Width d of the bottlenecks.
        scale: Factor s.
        dropout: Probability of dropping a hidden unit.
    """

    def __init__(self, experts: int, router: str, dim: int, hidden: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Adapter(dim, hidden, scale, dropout) for _ in range(experts))
        self.router, self.softmax = nn.Linear(dim, experts), router == "softmax"
        self.dropout, self.scale = nn.Dropout(dropout), scale
        nn.init.trunc_normal_(self.router.weight, std=0.02)
        nn.init.zeros_(self.router.bias)

    def forward(self, x: Tensor, stream: Tensor) -> Tensor:
        """Update of tokens x. The mean token of ``stream`` decides the mixture."""
        alpha = self.router(stream.mean(1))
        alpha = alpha.softmax(-1) if self.softmax else alpha
        hidden = self.dropout(torch.relu(self.linear(x, alpha, "down")))
        return self.scale * self.linear(hidden, alpha, "up")

    def linear(self, x: Tensor, alpha: Tensor, name: str) -> Tensor:
        """``x_b W_b^T + b_b`` with the mixed weights of every image b."""
        layers: Any = [getattr(expert, name) for expert in self.experts]
        weight = torch.tensordot(alpha, torch.stack([layer.weight for layer in layers]).to(alpha.dtype), 1)
        bias = torch.tensordot(alpha, torch.stack([layer.bias for layer in layers]).to(alpha.dtype), 1)
        return x @ weight.transpose(1, 2) + bias.unsqueeze(1)


class Logits(Operation):
    """Logits ``x w^T + b`` (B, N, 1) in the dtype of w; keeps the tokens x (B, N, D) in their own dtype."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x.to(weight.dtype), weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        d_x = (g @ weight).to(x.dtype) if ctx.needs_input_grad[0] else None
        d_weight = g.flatten(0, 1).T @ x.flatten(0, 1).to(weight.dtype)
        return d_x, d_weight, g.sum((0, 1))


class Dispatch(AdapterModule):
    """Sends patch tokens through a branch or past it, and adds an adapter's update to all tokens.

    ``pre_hook`` runs before the branch's norm, ``hook`` after its drop path. For the stream x (B, T, D) a branch f
    becomes ``M * f(x) + A(x)``. The mask M (B, T) is 1 for kept tokens and 0 for skipped ones; prefix tokens are always
    kept. In an evaluation, f runs for the kept tokens of the whole batch, as the rows of one matrix.

    Args:
        dim: Channels D of a token.
        adapter: The adapter A.
        temperature: Temperature tau of the relaxed decisions.
        prefix: Number of class and register tokens at the start of the sequence.
        skip: Computation of an evaluation: ``auto``, ``dense`` or ``gather``; see ``dyt_skip`` of ``DyT``.
    """

    mask_keys = True  # attention: no token attends to skipped tokens in training
    prefix_only = False  # whether all patch tokens skip in an evaluation, because their outputs are not used

    def __init__(self, dim: int, adapter: nn.Module, temperature: float, prefix: int, skip: str) -> None:
        super().__init__()
        self.adapter, self.dispatcher = adapter, nn.Linear(dim, 1)
        self.temperature, self.prefix, self.skip = temperature, prefix, skip
        self.complete = False  # whether all tokens are kept
        self.record: list[Tensor] | None = None  # list that collects the masks
        # kept between the hooks of one forward pass: the stream x, the mask M, the rows of the kept tokens in
        # (B T, D), and a mask of the gathered tokens (B, K) that is False for padding
        self.stream: Tensor | None = None
        self.mask: Tensor | None = None
        self.rows: Tensor | None = None
        self.valid: Tensor | None = None
        nn.init.trunc_normal_(self.dispatcher.weight, std=0.02)
        nn.init.zeros_(self.dispatcher.bias)

    # which tokens skip

    def decide(self, x: Tensor) -> Tensor:
        """Mask M (B, T) of a stream x: bool, or in training 0 and 1 with the gradient of a sigmoid."""
        patches = x[:, self.prefix :]
        if self.drops_patches:
            mask = torch.zeros(patches.shape[:2], dtype=torch.bool, device=x.device)
        else:
            # in the fp32 of trained tensors, because a rounded logit near 0 could change the decision
            with torch.autocast(x.device.type, enabled=False):
                logits = Logits.apply(patches, self.dispatcher.weight, self.dispatcher.bias).squeeze(-1)
            if self.training:
                logits = logits + self.noise(logits)
                soft = torch.sigmoid(logits / self.temperature)
                mask = (logits > 0).float() + (soft - soft.detach())
            else:
                mask = logits > 0
        if self.record is not None:
            self.record.append(mask)
        return torch.cat([mask.new_ones(x.shape[0], self.prefix), mask], dim=1)

    def noise(self, logits: Tensor) -> Tensor:
        """Difference of two Gumbel(0, 1) draws for each token."""
        first, second = -torch.empty_like(logits).exponential_().log(), -torch.empty_like(logits).exponential_().log()
        return first - second

    @property
    def drops_patches(self) -> bool:
        return self.prefix_only and not self.training and self.skip != "dense"

    @property
    def gathers(self) -> bool:
        # a compiled graph needs fixed shapes, and the number of kept rows depends on the data
        automatic = self.skip == "auto" and not torch.compiler.is_compiling()
        return not self.training and (self.skip == "gather" or automatic)

    # tokens that run

    def pre_hook(self, module: nn.Module, args: tuple[Any, ...]) -> Tensor | None:
        """Tokens of the stream that the branch gets; None for all of them."""
        x = args[0]
        self.stream, self.mask, self.rows, self.valid = x, None, None, None  # removes the values of a failed pass
        if self.drops_patches:
            self.decide(x)  # adds the mask to ``record``
            return x[:, : self.prefix]
        if self.complete:
            return None
        self.mask = self.decide(x)
        return self.gather(x, self.mask) if self.gathers else None

    def gather(self, x: Tensor, mask: Tensor) -> Tensor:
        """Kept tokens (K, D) of all images."""
        self.rows = mask.flatten().nonzero().squeeze(1)
        return x.flatten(0, 1).index_select(0, self.rows)

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        x, mask, rows = self.stream, self.mask, self.rows
        assert x is not None, "the norm before the branch was not called"
        self.stream = self.mask = self.rows = None
        if self.drops_patches:
            update = output + self.adapter(x[:, : self.prefix], x)
            return F.pad(update, (0, 0, 0, x.shape[1] - self.prefix))
        update = self.adapter(x, x)
        if mask is None:
            return output + update
        if rows is None:
            return mask.to(output.dtype).unsqueeze(-1) * output + update
        return update.flatten(0, 1).index_add(0, rows, output.to(update.dtype)).view_as(x)


class AttentionDispatch(Dispatch):
    """Dispatch of the attention: queries, keys and values are the kept tokens of each image.

    Images keep different numbers of tokens. K is the largest number; the other images are padded with tokens that are
    masked as keys.
    """

    def gather(self, x: Tensor, mask: Tensor) -> Tensor:
        counts = mask.sum(1)
        longest = max(int(counts.max()), 1)
        first = mask.int().argsort(dim=1, descending=True, stable=True)[:, :longest]  # kept tokens come first
        self.valid = torch.arange(longest, device=x.device) < counts.unsqueeze(1)
        self.rows = (first + x.shape[1] * torch.arange(len(x), device=x.device).unsqueeze(1))[self.valid]
        return x.gather(1, first.unsqueeze(-1).expand(-1, -1, x.shape[2]))

    def attention_pre_hook(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of the attention, with a mask of the keys."""
        keys = self.valid
        if keys is None and self.mask is not None and (self.mask_keys or not self.training):
            keys = self.mask.detach() > 0
        if keys is not None:
            # an image without a kept token gets all keys, otherwise its softmax would give NaN; its output is not used
            keys = keys | ~keys.any(1, keepdim=True)
            kwargs["attn_mask"] = keys[:, None, None]
        return args, kwargs

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if self.valid is not None:
            output, self.valid = output[self.valid], None
        return super().hook(module, args, output)


class LayerDispatch(AttentionDispatch):
    """Dispatch of a whole block: masks the block's residual update; the adapter runs in parallel."""

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        x = self.stream
        assert x is not None
        return x + super().hook(module, args, output - args[0])  # args[0] is the output of ``pre_hook``
