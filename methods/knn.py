"""Weighted vote of the k nearest training images (Wu et al., CVPR 2018, arXiv:1805.01978), as DINO evaluates.

``p_c = sum of exp(s_i / T) over the k nearest images i of class c, divided by that over all k``, with the cosine s_i
between frozen features of the image and of training image i.
"""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.inject import Backbone, check_free
from methods.core.closed_form import ClosedForm

ROWS = 65_536  # training images that are compared at once
SMALLEST = 1e-6  # share of a class without a vote, whose logarithm would be infinite


class Neighbours(nn.Module):
    """Features of the training images, and the vote of the nearest ones.

    Args:
        dim: Number C of features.
        num_classes: Number K of classes.
        k: Number of neighbours; all if there are fewer training images.
        temperature: Temperature T of the votes.
    """

    features: Tensor
    labels: Tensor

    def __init__(self, dim: int, num_classes: int, k: int, temperature: float) -> None:
        super().__init__()
        self.num_classes, self.k = num_classes, k
        self.temperature = nn.Parameter(torch.tensor(temperature))
        self.register_buffer("features", torch.zeros(0, dim))  # (N, C), each of length 1
        self.register_buffer("labels", torch.zeros(0, dtype=torch.long))  # (N,)

    def nearest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines (B, k) and classes (B, k) of the nearest training images, for features (B, C) of length 1."""
        cosines, labels = x.new_zeros(len(x), 0), self.labels.new_zeros(len(x), 0)
        for features, classes in zip(self.features.split(ROWS), self.labels.split(ROWS), strict=True):
            cosines = torch.cat([cosines, x @ features.to(x.dtype).T], 1)
            labels = torch.cat([labels, classes.expand(len(x), -1)], 1)
            cosines, places = cosines.topk(min(self.k, cosines.shape[1]), dim=1)
            labels = labels.gather(1, places)
        return cosines, labels

    def forward(self, x: Tensor) -> Tensor:
        """Logarithms of the shares of votes (B, K) for features (B, C)."""
        with torch.autocast(x.device.type, enabled=False):  # because bf16 has three digits, and T enlarges differences
            cosines, labels = self.nearest(F.normalize(x.float(), dim=1))
            votes = (cosines / self.temperature).softmax(1)
            shares = votes.new_zeros(len(x), self.num_classes).scatter_add(1, labels, votes)
            return shares.clamp(min=SMALLEST).log()


class KNN(ClosedForm):
    """k nearest neighbours on a frozen backbone (Wu et al., CVPR 2018, arXiv:1805.01978); no training.

    Args:
        knn_k: Number k of training images that vote.
        knn_temperature: Temperature T of the votes; near 0 the nearest image decides.
    """

    mergeable = False
    unmergeable = "its training features stay beside the backbone"

    def __init__(self, knn_k: int = 20, knn_temperature: float = 0.07, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if knn_k < 1:
            raise ValueError(f"knn_k={knn_k}: expected at least 1 neighbour")
        if not 0 < knn_temperature < float("inf"):
            raise ValueError(f"knn_temperature={knn_temperature}: expected a positive temperature")
        self.knn_k, self.knn_temperature = knn_k, knn_temperature

    def build(self) -> None:
        super().build()
        self.backbone.reset_classifier(0)  # its random weights would have no use

    def heads(self) -> dict[str, nn.Module]:
        return {}

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        check_free(backbone, "knn")
        task: Any = self
        backbone.knn = Neighbours(backbone.head_hidden_size, task.num_classes, self.knn_k, self.knn_temperature)

    # features

    def frozen_layers(self) -> str:
        with torch.no_grad(), self.mixed_dtypes():
            (features,) = self.frozen_features(self.example_batch().inputs)
        if not isinstance(features, Tensor) or features.shape != (1, self.backbone.knn.features.shape[1]):
            raise ValueError(f"{type(self.backbone).__name__} has no single vector of features before its classifier")
        return "pooled"

    def frozen_features(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.backbone.forward_head(self.backbone.forward_features(x), pre_logits=True),)

    def forward_frozen(self, features: tuple[Tensor, ...]) -> Tensor:
        return self.backbone.knn(*features)

    def predict_from(self, features: Tensor) -> Tensor:
        """Logarithms of the shares of votes (B, K) for features of the backbone."""
        return self.backbone.knn(self.backbone.forward_head(features, pre_logits=True))

    def embedding_layer(self) -> nn.Module:
        """Layer whose input is the embedding of an image."""
        return self.backbone.knn

    # the fit, and files

    @torch.no_grad()
    def compute(self, features: Tensor, labels: Tensor) -> None:
        neighbours = self.backbone.knn
        neighbours.features, neighbours.labels = F.normalize(features, dim=1), labels
        if self.knn_k > len(labels):
            rank_zero_info(f"note: knn_k={self.knn_k}: there are {len(labels)} training images, and all of them vote")

    def take_sizes(self, tensors: Mapping[str, Tensor]) -> None:
        super().take_sizes(tensors)
        for name in ("features", "labels"):  # as many rows as there were training images
            held, found = getattr(self.backbone.knn, name), tensors.get(f"backbone.knn.{name}")
            if found is not None and found.shape[1:] == held.shape[1:]:
                setattr(self.backbone.knn, name, held.new_zeros(found.shape))
