"""Visual Prompt Tuning (arXiv:2203.12119).

``[x', _] = block([x, p])`` with learned tokens p; only x' is passed on to the next block (VPT-Deep).
"""

from typing import Any, Literal

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.anatomy import TokenSequence, has_windows, norms_first, patch_embedding, per_block, token_sequence
from backbones.attention import can_extend, extend_attention
from backbones.inject import AdapterModule, Backbone, check_free
from backbones.prompted_swin import pass_prompts
from callbacks.scoring.undisturbed import eagerly, unchanged
from lightning_modules.run import datamodule_of
from lightning_modules.seed import run_seed
from methods.core.base import PEFTMethod

IMAGES = 32  # training images whose tokens become initial prompts


class Prompt(AdapterModule):
    """Learned tokens (P, d), put before the input sequence (B, N, C) of a module and removed from its output.

    They are at the start of the sequence, because rotary positions count the patches from its end, and the removal is
    a view.

    Args:
        length: Number P of tokens.
        dim: Width d of a token.
        bound: Largest initial value.
        dropout: Probability of dropping an element of a prompt.
        project: Layer from d to C, shared by all prompts of a backbone.
        norm: Norm that the prompts pass, because the paper puts them into the sequence before that norm.
        fourier: Number of the first prompts that become the real part of their Fourier transform.
    """

    def __init__(
        self,
        length: int,
        dim: int,
        bound: float,
        dropout: float,
        project: nn.Module,
        norm: nn.Module,
        fourier: int = 0,
    ) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(length, dim).uniform_(-bound, bound))
        self.length, self.dropout, self.fourier = length, dropout, fourier
        self.shared = (project, norm)  # in a tuple, because they are children of the backbone and saved there once

    def rows(self) -> Tensor:
        """Tokens (P, d), the same for every image."""
        return self.tokens

    def forward(self, x: Tensor) -> Tensor:
        """Tokens for the images of a feature x (B, ..., C): (1, P, C), or (B, P, C) with dropout."""
        project, norm = self.shared
        copies = len(x) if self.training and self.dropout else 1  # dropout differs between images
        tokens = project(self.rows()).to(x.dtype).repeat(copies, 1, 1)
        tokens = F.dropout(tokens, self.dropout, self.training)
        if self.fourier:  # over tokens and channels; in fp32, because torch has no transform in bf16
            first, rest = tokens.tensor_split([self.fourier], dim=1)
            tokens = torch.cat([torch.fft.fft2(first.float()).real.to(rest.dtype), rest], dim=1)
        return norm(tokens)

    def pre_hook(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *rest = args
        return torch.cat([self(x).expand(x.shape[0], -1, -1), x], dim=1), *rest

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output[:, self.length :]


def resize_prompt(tokens: Tensor, length: int, how: str) -> Tensor:
    """Prompts (P, d) resized to (length, d); unchanged for ``error``, so that a later check refuses them."""
    if how == "truncate":
        return tokens[:length]
    if how == "tile":
        return tokens.repeat(-(-length // len(tokens)), 1)[:length]
    if how == "interpolate":
        return F.interpolate(tokens.T[None], length, mode="linear", align_corners=True)[0].T.contiguous()
    return tokens


class VPT(PEFTMethod):
    """Visual prompt tuning (Jia et al., ECCV 2022, arXiv:2203.12119).

    Prompts have no position: a backbone with rotary positions does not rotate them, and a position bias is 0 for them.

    Args:
        prompt_length: Prompt tokens per block with prompts.
        prompt_lengths: One number of prompts for each block, first to last, in place of ``prompt_length``; 0 for a
            block without prompts (arXiv:2206.04673). Only for ``prompt_deep`` on a ViT.
        prompt_deep: Whether each block has new prompts (VPT-Deep), or only the first block (VPT-Shallow).
        prompt_project: Width of the prompts before one learned layer that maps them to the width of the backbone; 0 for
            no such layer.
        prompt_dropout: Probability of dropping an element of a prompt.
        prompt_init: Initial prompts, uniform within a bound. ``patch``: the Xavier bound of the patch embedding,
            ``sqrt(6 / (3 h w + d))``, as in VPT's code. ``xavier``: that of P prompts themselves,
            ``sqrt(6 / (d (P + 1)))``, as in NOAH's code. ``tokens``: no random values, but tokens that patches of 32
            training images have before that block, drawn when a fit starts (self-prompt tuning, arXiv:2402.02382); only
            for ``prompt_deep`` on a ViT.
        prompt_fourier: Share of the prompts of each block, the first ones, that become the real part of their Fourier
            transform over tokens and channels (VFPT, arXiv:2411.01327).
        prompt_resize: Prompts from ``init_from`` if the other run has another number of them. ``error``: refuse them.
            ``truncate``: keep the first ones. ``tile``: repeat them. ``interpolate``: interpolate linearly.
    """

    mergeable = False
    unmergeable = "tokens attend to prompts, which are no weights"
    fewest_prompts = 1

    def __init__(
        self,
        prompt_length: int = 10,
        prompt_lengths: list[int] | None = None,
        prompt_deep: bool = True,
        prompt_project: int = 0,
        prompt_dropout: float = 0.0,
        prompt_init: Literal["patch", "xavier", "tokens"] = "patch",
        prompt_fourier: float = 0.0,
        prompt_resize: Literal["error", "truncate", "tile", "interpolate"] = "error",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if prompt_length < self.fewest_prompts:
            raise ValueError(f"prompt_length={prompt_length}: expected at least {self.fewest_prompts} prompt token")
        if prompt_project < 0:
            raise ValueError(f"prompt_project={prompt_project}: expected a width, or 0 for no projection")
        if not 0 <= prompt_dropout < 1:
            raise ValueError(f"prompt_dropout={prompt_dropout}: expected a probability of at least 0 and below 1")
        if not 0 <= prompt_fourier <= 1:
            raise ValueError(f"prompt_fourier={prompt_fourier}: expected a share of the prompts, 0 to 1")
        if prompt_init == "tokens" and (not prompt_deep or prompt_project):
            raise ValueError(
                "prompt_init=tokens is for new prompts of full width at every block: leave prompt_project and "
                "prompt_deep=False out"
            )
        if prompt_lengths is not None and not prompt_deep:
            raise ValueError("prompt_lengths is for new prompts at every block: leave prompt_deep=False out")
        self.prompt_length, self.prompt_lengths, self.prompt_deep = prompt_length, prompt_lengths, prompt_deep
        self.prompt_project, self.prompt_dropout, self.prompt_init = prompt_project, prompt_dropout, prompt_init
        self.prompt_resize, self.prompt_fourier = prompt_resize, prompt_fourier

    def free_options(self) -> set[str]:
        length = {"prompt_length"} if self.prompt_resize != "error" else set()
        return super().free_options() | {"prompt_resize"} | length

    def resize_warm_start(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors = super().resize_warm_start(tensors)
        prompts = {name: tokens for name, tokens in tensors.items() if name.endswith("prompt.tokens")}
        if self.prompt_lengths is not None:
            return tensors
        return tensors | {name: resize_prompt(t, self.prompt_length, self.prompt_resize) for name, t in prompts.items()}

    def build(self) -> None:
        super().build()
        self.check_backbone(self.backbone)  # before any data are read

    def check_backbone(self, backbone: Backbone) -> None:
        """Refuse a backbone that cannot have prompts."""
        if has_windows(backbone) and self.dense:
            raise ValueError("a Swin passes its prompts on with its maps, which a head cannot read: use a ViT or lora")
        if not has_windows(backbone):
            token_sequence(backbone, "prompts join the tokens of a ViT or the windows of a Swin")

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        if has_windows(backbone):
            self.adapt_swin(backbone)
        else:
            self.adapt_sequence(backbone, token_sequence(backbone, "prompts join the tokens of a ViT"))

    def adapt_sequence(self, backbone: Backbone, sequence: TokenSequence) -> None:
        """Add prompts to the sequence and remove them before the final norm, so that no pooling includes them."""
        project: nn.Module = nn.Identity()
        width = self.prompt_project or sequence.width
        if self.prompt_project:
            check_free(backbone, "prompt_project")
            backbone.prompt_project = project = nn.Linear(self.prompt_project, sequence.width)
            nn.init.kaiming_normal_(project.weight, mode="fan_out")
        blocks = sequence.blocks if self.prompt_deep else sequence.blocks[:1]
        lengths = per_block("prompt_lengths", self.prompt_lengths, self.prompt_length, len(blocks))
        for block, length in zip(blocks, lengths, strict=True):
            check_free(block, "prompt")
            if self.prompt_init == "tokens" and not (norms_first(block) and can_extend(block)):
                raise ValueError(
                    f"prompt_init=tokens needs an attention that reads prompts, and {type(block).__name__} has "
                    "another one: choose prompt_init=patch"
                )
            if not length:
                continue
            # prompts of a deep ViT join the sequence between norm and attention, and leave it after the attention
            inside = self.prompt_deep and norms_first(block)
            norm = block.norm1 if inside else nn.Identity()
            block.prompt = prompt = self.new_prompt(backbone, length, width, project, norm)
            if inside and can_extend(block):  # as keys and values only, because their outputs are not used
                extend_attention(block).prompts = (prompt,)
                continue
            passed = [block] if self.prompt_deep else sequence.blocks
            for other in filter(can_extend, passed):
                extend_attention(other).inserted = (0, prompt.length)
            first, last = (block.attn, block.attn) if inside else (passed[0], passed[-1])
            first.register_forward_pre_hook(prompt.pre_hook)
            last.register_forward_hook(prompt.hook)

    def adapt_swin(self, backbone: Backbone) -> None:
        """Pass prompts on together with the maps, through windows, patch merging and the final pooling."""
        if self.prompt_project:
            raise ValueError(f"prompt_project={self.prompt_project}: the stages of a Swin differ in width, expected 0")
        if self.prompt_init == "tokens":
            raise ValueError("prompt_init=tokens: a Swin passes its prompts on, expected patch or xavier")
        if self.prompt_lengths is not None:
            raise ValueError("prompt_lengths: a Swin passes its prompts on, expected one prompt_length")
        none = nn.Identity()
        pass_prompts(
            backbone, lambda dim: self.new_prompt(backbone, self.prompt_length, dim, none, none), self.prompt_deep
        )

    def new_prompt(self, backbone: Backbone, length: int, dim: int, project: nn.Module, norm: nn.Module) -> Prompt:
        height, width = patch_embedding(backbone).patch_size
        # bound of Xavier uniform for the patch embedding; the later stages of a Swin use the bound of the first
        bound = (6 / (3 * height * width + (self.prompt_project or backbone.embed_dim))) ** 0.5
        if self.prompt_init == "xavier":  # NOAH draws as many prompts as its largest block has, and uses the first
            longest = max(self.prompt_lengths or [length])
            bound = (6 / (dim * (longest + 1))) ** 0.5
        fourier = int(length * self.prompt_fourier)
        if self.prompt_fourier and not fourier:
            raise ValueError(
                f"prompt_fourier={self.prompt_fourier}: this share of {length} prompts is none of them, expected more"
            )
        return Prompt(length, dim, bound, self.prompt_dropout, project, norm, fourier)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.prompt_init == "tokens" and self.trainer.ckpt_path is None and self.started_from is None:
            self.draw_tokens()

    @torch.no_grad()
    def draw_tokens(self) -> None:
        """Set the prompts of each block to tokens of patches of training images; the same on every rank.

        Raises:
            ValueError: If the run has no datamodule.
        """
        data: Any = datamodule_of(self.trainer)
        if data is None:
            raise ValueError("prompt_init=tokens reads training images: pass the data as a datamodule")
        batch = move_data_to_device(next(iter(data.score_batches(IMAGES, shuffle=True))), self.device)
        blocks = [block for block in self.backbone.blocks if hasattr(block, "prompt")]
        maps: list[Tensor] = []
        with unchanged(self), eagerly(), self.mixed_dtypes():
            self.eval()
            hooks = [block.register_forward_pre_hook(lambda module, args: maps.append(args[0])) for block in blocks]
            for block in blocks:
                block.attn.prompts = ()
            self.backbone.forward_features(data.on_after_batch_transfer(batch, 0).inputs)
        for block, hook in zip(blocks, hooks, strict=True):
            block.attn.prompts = (block.prompt,)
            hook.remove()
        generator = torch.Generator("cpu").manual_seed(run_seed())
        for block, tokens in zip(blocks, maps, strict=True):
            patches = tokens[:, self.backbone.num_prefix_tokens :].flatten(0, 1)
            drawn = torch.randint(len(patches), (block.prompt.length,), generator=generator, device="cpu")
            block.prompt.tokens.copy_(patches[drawn.to(patches.device)])
