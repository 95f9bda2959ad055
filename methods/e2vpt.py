"""E2VPT: An Effective and Efficient Approach for Visual Prompt Tuning (arXiv:2307.13770).

``softmax(q [k; p_k]^T / sqrt(d)) [v; p_v]`` with learned p_k, p_v, and prompts that are pruned and trained once more.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from backbones.anatomy import TokenSequence, norms_first, token_sequence
from backbones.attention import can_extend, extend_attention
from backbones.inject import Backbone, check_free, swap_class
from callbacks.scoring.scorers import AbsoluteGradients, Scorer, SignedGradients
from checkpoints.delta import check_delta
from lightning_modules.batch import Batch
from lightning_modules.run import datamodule_of
from methods.core.selective import Selective
from methods.vpt import VPT, Prompt

TOKEN, SEGMENT = "prompt_masks.token", "prompt_masks.segment"
SCORERS: dict[str, type[Scorer]] = {
    "removal": AbsoluteGradients,
    "paper": AbsoluteGradients,
    "code": SignedGradients,
}


class Masks(nn.Module):
    """Factors rho (P,) of the prompts and sigma (P, R) of their segments, the same in every block.

    Factors that neither train nor are scored are 1, and the computation leaves them out.

    Args:
        length: Number P of prompts.
        segments: Number R of segments.
        layout: Segment of each channel; see ``prompt_layout`` of ``E2VPT``.
        train: Whether the factors train.
    """

    def __init__(self, length: int, segments: int, layout: str, train: bool) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(length), requires_grad=train)
        self.segment = nn.Parameter(torch.ones(length, segments), requires_grad=train)
        self.layout = layout

    @property
    def active(self) -> bool:
        return self.token.requires_grad or self.segment.requires_grad

    def forward(self, width: int) -> Tensor:
        """Factors of all channels (P, width)."""
        return self.token[:, None] * spread(self.segment, width, self.layout)


class MaskedPrompt(Prompt):
    """Prompts with factors on tokens and segments."""

    masks: tuple[Masks]  # in a tuple, because it is a child of the backbone

    def rows(self) -> Tensor:
        masks = self.masks[0]
        return self.tokens * masks(self.tokens.shape[1]) if masks.active else self.tokens


class PrunedPrompt(Prompt):
    """Kept tokens with trained values in their kept channels; the other channels are zero.

    Pruned tokens are zero, and the other tokens still attend to them. As they are equal, the last prompt takes their
    place: ``ExtendedAttention`` adds the logarithm of their number to its attention score.
    """

    kept: Tensor
    channels: Tensor

    def prune(self, kept: Tensor, channels: Tensor, zero: bool) -> None:
        """Keep ``channels`` (K, c) of the tokens ``kept`` (K,), and with ``zero`` one zero token."""
        self.width, self.length = self.tokens.shape[1], len(kept) + zero
        # not saved, because the selection in the checkpoint gives them
        self.register_buffer("kept", kept.to(self.tokens.device), persistent=False)
        self.register_buffer("channels", channels.to(self.tokens.device), persistent=False)
        self.tokens = nn.Parameter(self.select(self.tokens.detach()))

    def select(self, tokens: Tensor) -> Tensor:
        """Kept values (K, c) of tokens (P, d)."""
        return tokens[self.kept].gather(1, self.channels)

    def rows(self) -> Tensor:
        return self.tokens.new_zeros(self.length, self.width).scatter(1, self.channels, self.tokens)


class E2VPT(VPT, Selective):
    """Effective and efficient visual prompt tuning (Han et al., ICCV 2023, arXiv:2307.13770).

    Args:
        kv_length: Learned keys and values per block, besides the prompts in the sequence.
        kv_shared: Whether the learned keys of a block are also its learned values.
        prompt_segments: Segments R of a prompt; the channels of a segment are scored and pruned together.
        prompt_layout: Channels of a segment. ``interleaved``: channel c is in segment c mod R (published code).
            ``contiguous``: each segment is one piece (paper).
        prompt_train_masks: Whether the factors of tokens and segments train in the first fit, as in the published code.
        prune_score: Score of tokens and segments. ``paper``: mean of |gradient| of their factor over batches. ``code``:
            mean of the gradient with its sign. ``removal``: as ``paper`` for segments; for a token the loss without it
            minus the loss with it, because a LayerNorm ignores a token's length and its gradient is close to noise.
        prune_tokens: Percentage of the prompts that ``prune_rewind`` prunes; at least one stays.
        prune_segments: Percentage of the segments of each prompt that ``prune_rewind`` prunes; at least four stay.
        prune_mode: Pruned prompts. ``zero``: stay as zero tokens (published code). ``remove``: leave the sequence.
    """

    fewest_prompts = 0
    fewest_segments = 4

    def __init__(
        self,
        kv_length: int = 5,
        kv_shared: bool = True,
        prompt_segments: int = 16,
        prompt_layout: Literal["interleaved", "contiguous"] = "interleaved",
        prompt_train_masks: bool = False,
        prune_score: Literal["removal", "paper", "code"] = "removal",
        prune_tokens: int = 50,
        prune_segments: int = 50,
        prune_mode: Literal["zero", "remove"] = "zero",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if kv_length < 0:
            raise ValueError(f"kv_length={kv_length}: expected a number of key-value prompts, or 0 for none")
        if prompt_segments < 1:
            raise ValueError(f"prompt_segments={prompt_segments}: expected at least 1 segment")
        if self.prompt_init == "tokens" or self.prompt_fourier:
            raise ValueError(
                "prompt_init=tokens and prompt_fourier: E2VPT prunes its prompts and goes back to their first values; "
                "use the method vpt"
            )
        if self.prompt_lengths is not None:
            raise ValueError(
                "prompt_lengths: all blocks share the masks of E2VPT's prompts, expected one prompt_length"
            )
        for name, percent in {"prune_tokens": prune_tokens, "prune_segments": prune_segments}.items():
            if not 0 <= percent < 100:
                raise ValueError(f"{name}={percent}: expected a percentage from 0 to 99")
        self.kv_length, self.kv_shared = kv_length, kv_shared
        self.prompt_segments, self.prompt_layout = prompt_segments, prompt_layout
        self.prompt_train_masks = prompt_train_masks
        self.prune_score, self.prune_mode = prune_score, prune_mode
        self.prune_tokens, self.prune_segments = prune_tokens, prune_segments
        self.prunable = self.prompt_length > 0

    def check_backbone(self, backbone: Backbone) -> None:
        sequence = token_sequence(backbone, "E2VPT adds keys and values to the attention of a ViT")
        odd = next((b for b in sequence.blocks if not (norms_first(b) and can_extend(b))), None)
        if odd is not None:
            raise ValueError(
                f"{type(backbone).__name__} with {described(odd)}: key-value prompts need blocks that norm their "
                "input and have one self-attention over all tokens. Use another ViT, or method vpt"
            )

    # training

    def adapt_sequence(self, backbone: Backbone, sequence: TokenSequence) -> None:
        pruned = 0
        if self.prompt_length:
            width = self.prompt_project or sequence.width
            if width % self.prompt_segments:
                raise ValueError(
                    f"prompt_segments={self.prompt_segments}: expected a divisor of the prompts' width {width}"
                )
            if self.selection is not None:
                self.check_selection(**self.selection)
            if self.selection is None:
                check_free(backbone, "prompt_masks")
                backbone.prompt_masks = Masks(
                    self.prompt_length, self.prompt_segments, self.prompt_layout, self.prompt_train_masks
                )
            elif self.prune_mode == "zero":
                pruned = self.prompt_length - len(self.selection["tokens"])
            super().adapt_sequence(backbone, sequence)
        for block in sequence.blocks if self.kv_length or pruned else ():
            attention = extend_attention(block)
            attention.repeated = pruned
            if self.kv_length:
                heads, width = getattr(attention, "num_kv_heads", attention.num_heads), attention.proj.in_features
                shape = (heads, self.kv_length, width // attention.num_heads)
                prompts = torch.empty(1 if self.kv_shared else 2, *shape)
                for part in prompts:
                    nn.init.kaiming_uniform_(part)  # for three dimensions, torch takes the fan-in Q d
                attention.kv_prompt = nn.Parameter(prompts)

    def new_prompt(self, backbone: Backbone, length: int, dim: int, project: nn.Module, norm: nn.Module) -> Prompt:
        prompt: Any = super().new_prompt(backbone, length, dim, project, norm)
        if self.selection is None:
            swap_class(prompt, MaskedPrompt)
            prompt.masks = (backbone.prompt_masks,)
            return prompt
        tokens, segments = (self.selection[name].to(torch.int64) for name in ("tokens", "segments"))
        mask = torch.zeros(len(tokens), self.prompt_segments, device=tokens.device).scatter(1, segments, 1.0)
        channels = spread(mask, dim, self.prompt_layout).nonzero()[:, 1].view(len(tokens), -1)
        swap_class(prompt, PrunedPrompt)
        prompt.prune(tokens, channels, zero=self.prune_mode == "zero" and len(tokens) < self.prompt_length)
        return prompt

    def description(self) -> dict[str, Any]:
        names = ("prompt_length", "prompt_segments", "prompt_layout")
        return super().description() | {name: getattr(self, name) for name in names}

    # scoring of a fitted model, and the second fit

    @property
    def score_data(self) -> dict[str, Any]:
        return {"batch_size": datamodule_of(self.trainer).batch_size, "shuffle": True}

    def score_key(self) -> str:
        return f"{super().score_key()} {self.prune_score} {self.description()}"

    def score_targets(self) -> list[str]:
        return [SEGMENT] if self.prune_score == "removal" else [TOKEN, SEGMENT]

    def build_scorer(self) -> Scorer:
        if not hasattr(self.backbone, "prompt_masks"):
            raise ValueError("the prompts of this model are pruned already: score the first fit")
        scorer = SCORERS[self.prune_score](self.backbone, self.score_targets())
        if self.prune_score == "removal":
            scorer.sums[TOKEN] = self.gains = torch.zeros(self.prompt_length, device=self.device)
        return scorer

    def score_loss(self, batch: Batch) -> Tensor:
        factors, without = self.backbone.prompt_masks.token, []
        with torch.no_grad():
            for index in range(len(factors)) if self.prune_score == "removal" else ():
                value = factors[index].clone()
                factors[index] = 0
                without.append(self.loss(batch))
                factors[index] = value
        loss = self.loss(batch)
        if without:
            self.gains += torch.stack(without) - loss.detach()
        return loss

    def select(self, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        lost = fewer(self.prompt_length, self.prune_tokens, 1)
        tokens = highest(scores[TOKEN], lost)
        lost = fewer(self.prompt_segments, self.prune_segments, self.fewest_segments)
        return {"tokens": tokens, "segments": highest(scores[SEGMENT], lost)[tokens]}

    def check_selection(self, tokens: Tensor, segments: Tensor) -> None:
        """Refuse numbers of tokens (K,) and their segments (K, S) that this model cannot keep."""
        if tokens.dim() != 1 or segments.dim() != 2 or len(tokens) != len(segments) or not segments.numel():
            shapes = f"{tuple(tokens.shape)} and {tuple(segments.shape)}"
            raise ValueError(f"kept tokens and segments of shapes {shapes}: expected (K,) and (K, S)")
        for name, kept, size in (("tokens", tokens, self.prompt_length), ("segments", segments, self.prompt_segments)):
            if kept.min() < 0 or kept.max() >= size or (kept.diff() <= 0).any():
                raise ValueError(f"kept {name} {kept.tolist()}: expected ascending numbers from 0 to {size - 1}")

    def rewind(self, initial: dict[str, Tensor]) -> None:
        kept = {name: value for name, value in initial.items() if "prompt_masks" not in name}
        for name, module in self.named_modules():
            if isinstance(module, PrunedPrompt):
                kept[f"{name}.tokens"] = module.select(kept[f"{name}.tokens"].to(module.kept.device))
        check_delta(self.delta_state_dict(), kept)
        self.load_state_dict(kept, strict=False)


def spread(segments: Tensor, width: int, layout: str) -> Tensor:
    """Values (P, width) of channels from the values (P, R) of their segments."""
    times = width // segments.shape[1]
    return segments.repeat(1, times) if layout == "interleaved" else segments.repeat_interleave(times, dim=1)


def described(block: Any) -> str:
    """Classes of a block and of its attention."""
    attention = getattr(block, "attn", None)
    return type(block).__name__ + (f" and {type(attention).__name__}" if attention is not None else "")


def fewer(size: int, percent: int, least: int) -> int:
    """Number of pruned items: a percentage of ``size``, but at least ``least`` items stay."""
    return max(min(size * percent // 100, size - least), 0)


def highest(scores: Tensor, lost: int) -> Tensor:
    """Ascending positions of scores (..., S) without the ``lost`` lowest ones; of equal scores the first is lost."""
    return scores.sort(stable=True).indices[..., lost:].sort().values
