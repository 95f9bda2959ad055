"""Regression of one number of a text or of a pair of texts, such as the similarity of two sentences."""

import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection, PearsonCorrCoef, SpearmanCorrCoef

from backbones.transformers_models import head_names, reset_heads
from lightning_modules.batch import Batch
from lightning_modules.number_metrics import NumberScore
from lightning_modules.regression import LOSSES
from lightning_modules.task import Headline
from lightning_modules.text_task import TextTask


class TextRegression(TextTask):
    """Regression of one number of a text with an encoder or a causal model of transformers, under its own new head.

    The head gives the number in the units of the data, as in the GLUE task STS-B (arXiv:1804.07461). A correlation of
    fewer than two texts, or of equal outputs, counts as 0.

    Args:
        loss: Loss of a number, a mean over texts. ``mse``: squared error. ``mae``: absolute error. ``huber``: squared
            error up to 1, absolute beyond, which outliers change less.
    """

    kind = "sequence_classification"
    headline = Headline("pearson", higher_is_better=True, label="Pearson correlation (%)", scale=100.0)
    targets = "numbers"

    def __init__(self, loss: Literal["mse", "mae", "huber"] = "mse", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss_name = loss
        self.build()
        self.init_metrics()

    def build(self) -> None:
        """Build a new plain model with a fresh head of one output."""
        self.backbone_args["num_labels"] = 1
        super().build()
        reset_heads(self.backbone)

    def heads(self) -> dict[str, nn.Module]:
        return {f"backbone.{name}": self.backbone.get_submodule(name) for name in head_names(self.backbone)}

    def losses(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Mean loss of outputs (B, 1) with numbers (B,)."""
        return {"task_loss": LOSSES[self.loss_name](outputs.float().squeeze(1), targets.float())}

    def loss_key(self) -> str:
        return f"loss={self.loss_name}"

    def metrics(self) -> MetricCollection:
        return MetricCollection(
            {
                "pearson": Pearson(),
                "spearman": Spearman(),
                "MAE": NumberScore("MAE", 1),
                "RMSE": NumberScore("RMSE", 1),
            },
            compute_groups=False,  # finding groups makes a GPU wait
        )

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        """Add outputs (B, 1) to metrics."""
        outputs, numbers, valid = outputs.float(), batch.targets[:, None].float(), batch.valid
        # each metric takes those arguments that it has
        both = {"preds": outputs[valid, 0], "target": numbers[valid, 0]}
        metrics.update(outputs=outputs, numbers=numbers, valid=valid, **both)

    def predictions(self, outputs: Tensor) -> Tensor:
        """Numbers (B, 1), fp32."""
        return outputs.float()

    def example_batch(self) -> Batch:
        """One text (1, N) with the number 0."""
        inputs = self.example_inputs()
        return Batch.of(inputs, torch.zeros(1, device=inputs["input_ids"].device))


class Pearson(PearsonCorrCoef):
    """Pearson correlation of outputs and numbers (B,); 0 if one of both is constant."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        if len(preds):  # torchmetrics takes the mean of none as NaN
            super().update(preds, target)

    def compute(self) -> Tensor:
        return without_nan(super().compute)


class Spearman(SpearmanCorrCoef):
    """Spearman correlation of outputs and numbers (B,); 0 if one of both is constant."""

    def __init__(self) -> None:
        with warnings.catch_warnings():  # it keeps all numbers of a split, which are few, and warns of it
            warnings.simplefilter("ignore")
            super().__init__()

    def compute(self) -> Tensor:
        return without_nan(super().compute)


def without_nan(correlation: Callable[[], Tensor]) -> Tensor:
    """A correlation, or 0 where torchmetrics gives NaN with a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return correlation().nan_to_num(0.0)
