"""Visual prompt tuning: learned tokens that frozen blocks attend to."""

from typing import Any

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import PEFTMethod
from methods.inject import Backbone, Op, check_free


class Prompt(Op):
    """Learned tokens (P, d), appended to the sequence (B, N, C) that a module sees and taken off its output.

    Attention does not know the order of tokens, so the end of the sequence is as good as the place after the class
    token, and there they are taken off as a view.

    Args:
        length: Number P of tokens.
        dim: Width d of a token.
        bound: Largest initial value.
        dropout: Probability of dropping an element of a prompt.
        project: Layer that maps d to C, for all prompts of a backbone the same.
        norm: Norm between the place of the prompts in the paper and the place where they join the sequence.
    """

    def __init__(
        self, length: int, dim: int, bound: float, dropout: float, project: nn.Module, norm: nn.Module
    ) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(length, dim).uniform_(-bound, bound))
        self.dropout = dropout
        self.shared = (project, norm)  # in a tuple: both belong to the backbone, which saves them once

    def insert(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *rest = args
        project, norm = self.shared
        tokens = project(self.tokens).to(x.dtype).repeat(len(x), 1, 1)
        tokens = norm(F.dropout(tokens, self.dropout, self.training))  # every image drops its own elements
        return torch.cat([x, tokens], dim=1), *rest

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output[:, : -len(self.tokens)]


class VPT(PEFTMethod):
    """Visual prompt tuning (Jia et al., ECCV 2022, arXiv:2203.12119).

    Args:
        prompt_length: Prompt tokens per prompted block.
        prompt_deep: New prompts at every block (VPT-Deep) or prompts at the first one only (VPT-Shallow).
        prompt_project: Width of the prompts, which one learned layer maps to the backbone's; 0 for none.
        prompt_dropout: Probability of dropping an element of a prompt.
    """

    mergeable = False

    def __init__(
        self,
        prompt_length: int = 10,
        prompt_deep: bool = True,
        prompt_project: int = 0,
        prompt_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if prompt_length <= 0:
            raise ValueError(f"prompt_length={prompt_length}: expected at least 1 prompt token")
        if prompt_project < 0:
            raise ValueError(f"prompt_project={prompt_project}: expected a width, or 0 for no projection")
        if not 0 <= prompt_dropout < 1:
            raise ValueError(f"prompt_dropout={prompt_dropout}: expected a probability of at least 0 and below 1")
        self.prompt_length, self.prompt_deep = prompt_length, prompt_deep
        self.prompt_project, self.prompt_dropout = prompt_project, prompt_dropout

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        if not isinstance(backbone, VisionTransformer):
            raise ValueError(
                f"prompts need a backbone with one token sequence, and {type(backbone).__name__} has none: use a ViT"
            )
        project: nn.Module = nn.Identity()
        if self.prompt_project:
            check_free(backbone, "prompt_project")
            backbone.prompt_project = project = nn.Linear(self.prompt_project, backbone.embed_dim)
            nn.init.kaiming_normal_(project.weight, mode="fan_out")
        dim = self.prompt_project or backbone.embed_dim
        height, width = backbone.patch_embed.patch_size
        bound = (6 / (3 * height * width + dim)) ** 0.5
        for block in backbone.blocks if self.prompt_deep else backbone.blocks[:1]:
            first: nn.Module = block
            last: nn.Module = block if self.prompt_deep else backbone.blocks[-1]
            norm: nn.Module = nn.Identity()
            if self.prompt_deep and isinstance(block, Block):
                # the next block replaces the prompts, so their way through this one ends behind its attention
                first, last, norm = block.attn, block.attn, block.norm1
            check_free(block, "prompt")
            block.prompt = prompt = Prompt(self.prompt_length, dim, bound, self.prompt_dropout, project, norm)
            first.register_forward_pre_hook(prompt.insert)
            last.register_forward_hook(prompt.hook)
