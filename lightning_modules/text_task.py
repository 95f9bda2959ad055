"""Tasks on text with a model of transformers."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from backbones.transformers_models import (
    Kind,
    build_text_model,
    context_of,
    logits_of,
    read_tokenizer,
    save_model,
)
from lightning_modules.batch import Batch
from lightning_modules.task import Task

EXAMPLE_TOKENS = 128  # of the text whose FLOPs are counted


class TextTask(Task):
    """A task on text with a model of transformers; a subclass gives ``kind``.

    Args:
        backbone: Id of a model on the Hugging Face hub, folder with ``config.json`` and ``model.safetensors``, or GGUF
            file. With ``pretrained=false`` also an architecture of transformers such as ``llama``.
        pretrained: Whether the model has its pretrained weights; otherwise they are random.
        backbone_args: Values of the model's config that differ, such as ``{num_hidden_layers: 8}``.
        tokenizer: Id on the hub, folder or GGUF file of the tokenizer; by default that of the backbone.
    """

    kind: ClassVar[Kind]
    unit = "text"

    def __init__(
        self,
        backbone: str = "HuggingFaceTB/SmolLM2-135M-Instruct",
        pretrained: bool = True,
        backbone_args: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.backbone_name, self.pretrained = backbone, pretrained
        self.backbone_args, self.tokenizer_name = dict(backbone_args or {}), tokenizer or backbone
        self.known_tokenizer: Any = None  # read when it is needed, because a check of sizes needs none

    def build(self) -> None:
        """Build a new plain model."""
        self.backbone = build_text_model(self.backbone_name, self.pretrained, self.backbone_args, self.kind)

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of the model.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it has more tokens than the model.
        """
        if self.known_tokenizer is None:
            self.known_tokenizer = read_tokenizer(self.tokenizer_name, self.backbone)
        return self.known_tokenizer

    @property
    def input_config(self) -> dict[str, Any]:
        """Tokenizer, and the largest number of tokens of a text, which datamodules use."""
        return {"tokenizer": self.tokenizer, "context": context_of(self.backbone)}

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.backbone.config.pad_token_id = self.tokenizer.pad_token_id  # by which a model finds the end of a text

    # a head of transformers lies inside the forward pass of its model, so that features and outputs are one

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        """Logits of texts: ``input_ids`` (B, N), ``attention_mask`` (B, N)."""
        return logits_of(self.backbone, inputs)

    def predict_from(self, features: Tensor) -> Tensor:
        """The logits, as they are."""
        return features

    def outputs_with(self, backbone: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Logits of texts for a plain model."""
        return logits_of(backbone, inputs)

    def export(self, backbone: nn.Module, folder: Path) -> None:
        """Write ``model.safetensors``, ``config.json`` and the tokenizer, as transformers reads them."""
        save_model(backbone, self.tokenizer, folder)

    def example_inputs(self) -> dict[str, Tensor]:
        """One text (1, N) of at most ``EXAMPLE_TOKENS`` tokens, the first ones of the vocabulary."""
        device = next(self.backbone.parameters()).device  # self.device is that of the run before the weights are there
        length = min(EXAMPLE_TOKENS, context_of(self.backbone))
        ids = torch.arange(length, device=device) % self.backbone.config.get_text_config().vocab_size
        return {"input_ids": ids[None]}

    def words(self, batch: Batch) -> Tensor:
        """Number of tokens of a batch, without padding."""
        return batch.inputs["attention_mask"].sum()
