"""Gradient-based Parameter Selection for Efficient Fine-Tuning (arXiv:2312.10136).

``W_ij`` trains if ``|dL/dW_ij|`` is among the k largest of row i: k incoming connections of each neuron.
"""

import warnings
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.anatomy import owner
from backbones.inject import Backbone
from callbacks.scoring.class_scorer import check_classes
from callbacks.scoring.scorers import AbsoluteGradients, Magnitudes, Scorer, SignedGradients, SquaredGradients
from callbacks.scoring.top import top, top_of_all, top_of_rows
from lightning_modules.batch import Batch
from lightning_modules.run import datamodule_of
from methods.core.selective import Selective
from methods.layers.sparse import merge_entries, train_entries

SCORERS: dict[str, type[Scorer]] = {
    "abs_sum": SignedGradients,
    "sum_sq": SquaredGradients,
    "abs_mean": AbsoluteGradients,
}
BY_MAGNITUDE = ("magnitude", "per_neuron_magnitude")  # choices that need no gradients


class GPS(Selective):
    """Gradient-based parameter selection (Zhang et al., CVPR 2024, arXiv:2312.10136).

    A neuron is an output of a linear layer or a channel of a convolution; the other parameters, such as the tables of
    position biases, stay frozen.

    Args:
        gps_k: Connections that train for each output neuron (``per_neuron``), or per neuron on average (other values
            of ``gps_select``).
        gps_loss: Loss of the scoring pass. ``supcon``: supervised contrastive loss of the features, without the head.
            ``ce``: the loss of the task through the head, for images the cross entropy of a random head.
        gps_temperature: Temperature of the contrastive loss.
        gps_score: Score of an entry, from its gradients g of the batches. ``abs_sum``: ``|sum g|``, the published
            score. ``sum_sq``: ``sum g^2``. ``abs_mean``: ``sum |g|``.
        gps_select: Choice of the entries. ``per_neuron``: the largest scores of each row (the method). The paper's
            comparisons: ``per_tensor``, the largest scores of each matrix; ``global``, the largest scores of all
            matrices; ``random``; ``magnitude``, the largest weights of all matrices. ``per_neuron_magnitude``: the
            largest weights of each row, as in NeuroAda (EMNLP 2025, arXiv:2510.18940). The last two read no data.
    """

    scorer: type[Scorer] | None = SignedGradients

    def __init__(
        self,
        gps_k: int = 1,
        gps_loss: Literal["supcon", "ce"] = "supcon",
        gps_temperature: float = 0.07,
        gps_score: Literal["abs_sum", "sum_sq", "abs_mean"] = "abs_sum",
        gps_select: Literal[
            "per_neuron", "per_tensor", "global", "random", "magnitude", "per_neuron_magnitude"
        ] = "per_neuron",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if gps_k < 1:
            raise ValueError(f"gps_k={gps_k}: expected at least 1 connection per neuron")
        if gps_temperature <= 0:
            raise ValueError(f"gps_temperature={gps_temperature}: expected a positive temperature")
        if self.targets != "labels" and gps_loss != "ce":
            raise ValueError(
                f"gps_loss={gps_loss} compares images by their classes, and {self.targets} have none: use gps_loss ce"
            )
        if self.unit != "image" and gps_loss != "ce":
            raise ValueError(f"gps_loss={gps_loss} compares views of images, not of {self.unit}s: use gps_loss ce")
        self.gps_k, self.gps_loss, self.gps_temperature = gps_k, gps_loss, gps_temperature
        self.gps_select = gps_select
        self.scorer = Magnitudes if gps_select in BY_MAGNITUDE else SCORERS[gps_score]

    # scoring

    def score_targets(self) -> list[str]:
        return [name for name, kind in self.kinds().items() if kind == "matrix"]

    def kinds(self) -> dict[str, str]:
        """Kind of each used parameter: ``frozen``, ``whole`` (trains in full), ``matrix`` (some entries train)."""
        kinds, heads = {}, self.head_prefixes
        for name in self.used_names():
            parameter = self.backbone.get_parameter(name)
            norm_of_sam = name.startswith("neck.") and parameter.dim() == 1  # whose names are numbers
            # biases of norms too
            if norm_of_sam or any(word in name.lower() for word in ("norm", "pos_embed", "cls_token")):
                kinds[name] = "frozen"
            elif f"backbone.{name}".startswith(heads) or "bias" in name or "gamma" in name:
                kinds[name] = "whole"
            else:
                layer = isinstance(owner(self.backbone, name), (nn.Linear, nn.modules.conv._ConvNd))
                kinds[name] = "matrix" if layer and parameter.dim() > 1 else "frozen"
        return kinds

    @property
    def score_data(self) -> dict[str, Any]:
        size = datamodule_of(self.trainer).batch_size
        views = 2 if self.gps_loss == "supcon" else 1
        return {"batch_size": size, "shuffle": True, "drop_last": True, "views": views}

    def score_key(self) -> str:
        loss = self.loss_key() if self.gps_loss == "ce" else self.gps_temperature
        return f"{super().score_key()} {self.gps_loss} {loss}"

    def score_loss(self, batch: Batch) -> Tensor:
        if self.gps_loss == "ce":
            return self.loss(batch)
        images, labels = batch.inputs, batch.targets
        check_classes(labels)
        if len(labels) < 2:
            raise ValueError("the contrastive loss compares images: data.batch_size=1, expected at least 2")
        features = self.backbone.forward_head(self.features(images), pre_logits=True)
        return supervised_contrastive(features, labels.repeat(len(images) // len(labels)), self.gps_temperature)

    def select(self, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        scores = {name: scores[name] for name in self.score_targets()}  # because a file has another order
        if self.gps_select == "random":
            generator = torch.Generator().manual_seed(0)
            scores = {name: torch.rand(score.shape, generator=generator) for name, score in scores.items()}
        elif self.gps_select in BY_MAGNITUDE:
            weights = dict(self.backbone.named_parameters())
            scores = {name: weights[name].detach().cpu() for name in scores}
        scores = {name: score.abs().flatten(1) for name, score in scores.items()}  # (out, fan_in)
        selection = {}
        if self.gps_select in ("per_neuron", "per_neuron_magnitude"):
            self.warn(scores)
            selection = {name: top_of_rows(score, self.gps_k) for name, score in scores.items()}
        elif self.gps_select == "per_tensor":
            selection = {name: top(score.flatten(), self.gps_k * len(score)) for name, score in scores.items()}
        else:
            selection = top_of_all(scores, self.gps_k * sum(map(len, scores.values())))
        return {name: indices.to(torch.int32) for name, indices in selection.items()}

    def warn(self, scores: dict[str, Tensor]) -> None:
        """Warn about scores (out, fan_in) that leave no choice."""
        narrow = [name for name, score in scores.items() if score.shape[1] < self.gps_k]
        if narrow:
            shown = f"{', '.join(narrow[:5])} ({len(narrow)} tensors)"
            warnings.warn(f"gps_k={self.gps_k}: whole rows train where there are fewer columns, {shown}", stacklevel=3)
        blind = {name: rows for name, score in scores.items() if (rows := int((score.amax(1) == 0).sum()))}
        if blind:
            shown = ", ".join(f"{rows} of {name}" for name, rows in list(blind.items())[:5])
            warnings.warn(f"rows whose scores are all zero train their first gps_k columns: {shown}", stacklevel=3)

    # training

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        assert self.selection is not None
        train_entries(backbone, self.selection)

    def trainable_names(self) -> Iterable[str]:
        return [name for name, kind in self.kinds().items() if kind == "whole"]

    def merge_into(self, backbone: Backbone) -> None:
        merge_entries(backbone)
        super().merge_into(backbone)


def supervised_contrastive(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss (Khosla et al., 2020) of features (N, C) with labels (N,), a scalar.

    Each feature is an anchor; its positives are the other features with its label.

    Raises:
        ValueError: If a feature has no positive.
    """
    z = F.normalize(features.float(), dim=1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    similar = (z @ z.t() / temperature).masked_fill(itself, float("-inf"))
    positive = (labels[:, None] == labels[None, :]) & ~itself
    if not positive.any(1).all():
        raise ValueError("the contrastive loss needs two views of an image, or two images of a class, in every batch")
    log_share = similar - similar.logsumexp(1, keepdim=True)
    return -(log_share.masked_fill(~positive, 0).sum(1) / positive.sum(1)).mean()
