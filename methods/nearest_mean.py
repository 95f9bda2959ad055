"""Nearest class mean (Snell et al., NeurIPS 2017, arXiv:1703.05175, section 2.4).

``logits_k = 2 m_k f(x) - |m_k|^2``, which is ``|f(x)|^2 - |f(x) - m_k|^2``, with frozen features f and their mean m_k
over the training images of class k.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from backbones.inject import Backbone
from lightning_modules.class_losses import class_counts
from lightning_modules.run import datamodule_of
from methods.core.closed_form import ClosedForm
from methods.linear_probe import LinearProbe

ROWS = 65_536  # images whose classes are spread at once


class NearestMean(ClosedForm, LinearProbe):
    """Nearest class mean on a frozen backbone (Snell et al., NeurIPS 2017, arXiv:1703.05175); no training.

    The means are written into the classifier, as its weights and biases. Therefore the model merges.
    """

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        if any(getattr(backbone.get_submodule(name), "bias", None) is None for name in self.head_names):
            raise ValueError(
                f"NearestMean needs a bias in the classifier, and that of {type(backbone).__name__} has none: use knn"
            )

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data: Any = datamodule_of(self.trainer)
        if stage == "fit" and data is not None:  # here, because nothing is computed yet
            class_counts(data.splits["train"].samples.labels, data.num_classes, data.class_names, "method nearest_mean")

    @torch.no_grad()
    def compute(self, features: Tensor, labels: Tensor) -> None:
        head: Any = self.backbone.get_submodule(self.head_names[0])
        # products, because index_add rounds in another order at each call on a GPU
        of_class = [F.one_hot(part, len(head.weight)).to(features.dtype).T for part in labels.split(ROWS)]
        sums = torch.stack([t @ part for t, part in zip(of_class, features.split(ROWS), strict=True)]).sum(0)
        # at least 1, for classes of which a limited pass reads no image
        means = sums / torch.stack([t.sum(1) for t in of_class]).sum(0).clamp(min=1)[:, None]
        head.weight.copy_(2 * means)
        head.bias.copy_(-means.square().sum(1))
