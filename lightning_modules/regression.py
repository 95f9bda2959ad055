"""Regression of one or more numbers of an image."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection

from backbones.timm_models import classifier_layers
from lightning_modules.batch import Batch
from lightning_modules.number_metrics import NumberScore
from lightning_modules.run import datamodule_of
from lightning_modules.task import Headline
from lightning_modules.timm_head import TimmHead

LOSSES: dict[str, Any] = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.huber_loss}


class Regression(TimmHead):
    """Regression of numbers of an image with a timm backbone.

    The head gives standardised numbers, (number - mean) / std of the training images; outputs, metrics and a merged
    model are in the units of the data.

    Args:
        num_targets: Numbers of an image; on the command line it comes from the data.
        loss: Loss of standardised numbers, a mean over numbers and images. ``mse``: squared error. ``mae``: absolute
            error. ``huber``: squared error up to 1, absolute beyond, which outliers change less.
    """

    headline = Headline("MAE", higher_is_better=False, label="mean absolute error")
    links: ClassVar[dict[str, str]] = {"num_targets": "num_targets"}
    targets = "numbers"

    def __init__(self, num_targets: int = 1, loss: Literal["mse", "mae", "huber"] = "mse", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_targets < 1:
            raise ValueError(f"num_targets={num_targets}: expected at least 1 number")
        self.num_targets, self.loss_name = num_targets, loss
        self.target_names: list[str] = []
        # plain lists, because the identity of a checkpoint holds them
        self.target_mean, self.target_std = [0.0] * num_targets, [1.0] * num_targets
        self.build()
        self.init_metrics()

    @property
    def outputs(self) -> int:
        return self.num_targets

    @property
    def output_names(self) -> list[str]:
        return self.target_names

    # model

    def statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std of each number (T,), fp32, on the device of a tensor."""
        mean, std = torch.tensor([self.target_mean, self.target_std], device=like.device)
        return mean, std

    def predict_from(self, features: Tensor) -> Tensor:
        """Numbers (B, T) of features, fp32."""
        return self.in_units(super().predict_from(features))

    def in_units(self, outputs: Tensor) -> Tensor:
        """Numbers (B, T) of standardised ones."""
        mean, std = self.statistics(outputs)
        return outputs.float() * std + mean

    def finish_merged(self, backbone: nn.Module) -> None:
        for name in classifier_layers(backbone):
            layer = backbone.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            mean, std = self.statistics(layer.weight)
            layer.weight.mul_(std[:, None])
            layer.bias.mul_(std).add_(mean)

    # training and evaluation

    def losses(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Mean loss of numbers (B, T), both standardised."""
        mean, std = self.statistics(outputs)
        return {"task_loss": LOSSES[self.loss_name]((outputs.float() - mean) / std, (targets - mean) / std)}

    def loss_key(self) -> str:
        return f"loss={self.loss_name} mean={self.target_mean} std={self.target_std}"

    def metrics(self) -> MetricCollection:
        return MetricCollection(
            {
                "MAE": NumberScore("MAE", self.num_targets),
                "RMSE": NumberScore("RMSE", self.num_targets),
                "R2": NumberScore("R2", self.num_targets),
            },
            compute_groups=[["MAE", "RMSE", "R2"]],  # one set of sums; finding groups makes a GPU wait
        )

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        """Add numbers (B, T) to metrics."""
        metrics.update(outputs, batch.targets, batch.valid)

    def example_batch(self) -> Batch:
        """One image of zeros (1, C, H, W) whose numbers are their means."""
        images = self.example_images()
        return Batch.of(images, self.statistics(images)[0][None])

    # data

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = datamodule_of(self.trainer)
        names = list(getattr(data, "target_names", []))
        check_names(names, self.target_names)
        self.target_names = names
        if stage == "fit" and data is not None:
            self.measure(data.splits["train"].samples.labels)

    def measure(self, numbers: Tensor) -> None:
        """Take mean and std of the numbers of the training images (N, T)."""
        std = numbers.double().std(0, correction=0)
        self.target_mean = numbers.double().mean(0).tolist()
        self.target_std = torch.where(std > 0, std, 1.0).tolist()

    def identity(self) -> dict[str, Any]:
        return {"targets": self.target_names, "mean": self.target_mean, "std": self.target_std}

    def adopt(self, identity: dict[str, Any]) -> None:
        names, mean, std = (identity.get(key) or [] for key in ("targets", "mean", "std"))
        if not all(isinstance(part, list) for part in (names, mean, std)) or {len(mean), len(std)} - {0, self.outputs}:
            raise ValueError(f"the checkpoint has the numbers {str(identity)[:60]!r}; expected lists of {self.outputs}")
        check_names(self.target_names, names)
        self.target_names = names or self.target_names
        if mean and std:
            self.target_mean, self.target_std = [float(value) for value in mean], [float(value) for value in std]


def check_names(here: list[str], there: list[str]) -> None:
    """Refuse data with other numbers, or another order of them, than the checkpoint.

    Args:
        here: Names of the numbers of the data.
        there: Names of the numbers of the checkpoint.

    Raises:
        ValueError: If both lists have names and differ, with both lists.
    """
    if here and there and here != there:
        ours, theirs = (", ".join(map(str, names))[:300] for names in (here, there))
        raise ValueError(
            f"the data have other numbers than the checkpoint: {ours} in the data, {theirs} in the checkpoint"
        )
