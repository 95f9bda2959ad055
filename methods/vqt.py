"""VQT: Visual Query Tuning (arXiv:2212.03220).

``z_l = block_l(q_l)``, where the learned queries q_l attend to the keys and values of the frozen tokens of block l.
``logits = W [f; z_1; ...; z_L]`` with the frozen feature f; each part has length 1.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.anatomy import patch_embedding, token_sequence
from backbones.attention import can_extend, extend_attention
from backbones.inject import AdapterModule, Backbone, attach
from backbones.timm_models import classifier_layers
from lightning_modules.task import Task
from methods.core.base import PEFTMethod


class Queries(AdapterModule):
    """Learned tokens (P, C) that pass one block of a ViT and read its tokens; the tokens do not read them.

    So no gradient enters the frozen tokens, and nothing is kept for them.

    Args:
        length: Number P of queries.
        dim: Width C of a token.
        bound: Largest initial value.
        dropout: Probability of dropping an element of a query.
    """

    def __init__(self, length: int, dim: int, bound: float, dropout: float) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(length, dim).uniform_(-bound, bound))
        self.dropout = nn.Dropout(dropout)
        self.summary: Tensor | None = None  # z (B, P, C) between the block and the classifier

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        block: Any = module
        queries = self.query.to(output.dtype).repeat(len(output), 1, 1)
        self.summary = block.forward(self.dropout(queries))  # with the keys and values of the pass before
        block.attn.kept = None
        return output

    def take(self) -> Tensor:
        """Return the summary (B, P C) and drop it."""
        assert self.summary is not None, "no images have passed the block"
        summary, self.summary = self.summary.flatten(1), None
        return summary


class VQT(PEFTMethod):
    """Visual query tuning (Tu et al., CVPR 2023, arXiv:2212.03220).

    The classifier reads L P C features more than that of the backbone, for L blocks of width C.

    Args:
        vqt_length: Number P of queries of each block.
        vqt_dropout: Probability of dropping an element of a query.
        vqt_normalize: Whether the feature of the backbone and the queries of each block have length 1 before the
            classifier, as in the published code.
    """

    mergeable = False
    unmergeable = "its queries give features beside those of the backbone"

    def __init__(
        self, vqt_length: int = 1, vqt_dropout: float = 0.0, vqt_normalize: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if vqt_length < 1:
            raise ValueError(f"vqt_length={vqt_length}: expected at least 1 query")
        if not 0 <= vqt_dropout < 1:
            raise ValueError(f"vqt_dropout={vqt_dropout}: expected a probability of at least 0 and below 1")
        self.vqt_length, self.vqt_dropout, self.vqt_normalize = vqt_length, vqt_dropout, vqt_normalize

    @classmethod
    def refusal(cls, task: type[Task]) -> str:
        reason = "VQT gives features to a classifier, and here a head reads maps: use vpt or lora"
        return reason if task.dense else super().refusal(task)

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        sequence = token_sequence(backbone, "the queries of VQT read the tokens of a plain ViT")
        heads = list(classifier_layers(backbone).values())
        if len(heads) != 1 or not isinstance(heads[0], nn.Linear) or not all(map(can_extend, sequence.blocks)):
            raise ValueError(
                f"VQT needs one linear classifier and one attention in each block, and {type(backbone).__name__} has "
                "others here: use a ViT, DINOv3, EVA or BEiT, or the method lora"
            )
        height, width = patch_embedding(backbone).patch_size
        bound = (6 / (3 * height * width + sequence.width)) ** 0.5  # of Xavier uniform for the patch embedding, as VPT
        for block in sequence.blocks:
            extend_attention(block).keeps = True
            attach(block, "vqt", Queries(self.vqt_length, sequence.width, bound, self.vqt_dropout))
        self.resize_head(heads[0].in_features + len(sequence.blocks) * self.vqt_length * sequence.width)

    def features(self, x: Any) -> Tensor:
        """Features of the classifier (B, C (1 + L P)); those of the plain backbone before it is adapted."""
        tokens = super().features(x)
        if not self.adapted:
            return tokens
        parts = [self.backbone.forward_head(tokens, pre_logits=True)]
        parts += [block.vqt.take() for block in self.backbone.blocks]
        return torch.cat([F.normalize(part, dim=1) for part in parts] if self.vqt_normalize else parts, dim=1)

    def predict_from(self, features: Tensor) -> Tensor:
        if not self.adapted:
            return super().predict_from(features)
        (head,) = classifier_layers(self.backbone).values()
        return head(features)
