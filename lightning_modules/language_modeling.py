"""Language modelling: the next token of a text."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection

from lightning_modules.batch import Batch
from lightning_modules.metrics import WeightedMean
from lightning_modules.task import Headline
from lightning_modules.text_task import TextTask

IGNORED = -100  # label of tokens without a loss: padding, and prompts if they are masked


class TokenCrossEntropy(WeightedMean):
    """Mean cross entropy over all tokens of a split, from logits (B, N, V) and labels (B, N) that are not shifted."""

    def update(self, outputs: Tensor, labels: Tensor) -> None:
        losses = token_losses(outputs, labels)
        super().update(losses, labels[:, 1:] != IGNORED)


class Perplexity(TokenCrossEntropy):
    """Exponential of the mean cross entropy of all tokens."""

    def compute(self) -> Tensor:
        return super().compute().exp()


class LanguageModeling(TextTask):
    """Language modelling with a causal model of transformers; nothing but the method trains.

    The loss is the mean cross entropy of the next token over the tokens of a batch that have a label. Perplexity is the
    exponential of the mean over all tokens of a split, on all ranks together.

    Args:
        label_smoothing: Probability mass that the training loss spreads over all tokens.
    """

    kind = "causal_lm"
    headline = Headline("perplexity", higher_is_better=False, label="perplexity")
    targets = "tokens"
    speed_unit = "token"

    def __init__(self, label_smoothing: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing}: expected a share of at least 0 and below 1")
        self.label_smoothing = label_smoothing
        self.build()
        self.init_metrics()

    def heads(self) -> dict[str, nn.Module]:
        """None: the layer of words is part of the pretrained model."""
        return {}

    def losses(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Mean cross entropy of logits (B, N, V) with labels (B, N); 0 if no token has a label."""
        count = (targets[:, 1:] != IGNORED).sum().clamp(min=1)
        return {"task_loss": token_losses(outputs, targets, self.label_smoothing).sum() / count}

    def loss_key(self) -> str:
        return f"label_smoothing={self.label_smoothing}"

    def metrics(self) -> MetricCollection:
        return MetricCollection({"perplexity": Perplexity(), "loss": TokenCrossEntropy()}, compute_groups=False)

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        """Add logits (B, N, V) to metrics."""
        metrics.update(outputs, batch.targets.masked_fill(~batch.valid[:, None], IGNORED))

    def amount(self, batch: Batch) -> Tensor:
        return self.words(batch)

    def example_batch(self) -> Batch:
        """One text (1, N) that predicts itself."""
        inputs = self.example_inputs()
        return Batch.of(inputs, inputs["input_ids"])


def token_losses(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy (B, N - 1) of logits (B, N, V) with the tokens that follow, by labels (B, N) of the tokens."""
    following = labels[:, 1:].reshape(-1)
    losses = F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        following,
        reduction="none",
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
    )
    return losses.view(len(labels), -1)


def text_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy (B,) of each text, from logits (B, N, V) and labels (B, N)."""
    counted = (labels[:, 1:] != IGNORED).sum(1)
    return torch.where(counted > 0, token_losses(logits, labels).sum(1) / counted.clamp(min=1), torch.nan)
