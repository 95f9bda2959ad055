"""Linear probe: ``logits = W f(x) + b`` with frozen features f; only W and b train."""

import torch
from torch import Tensor, nn

from backbones.evaluating import evaluating
from backbones.inject import Backbone
from callbacks.scoring.undisturbed import eagerly
from methods.core.frozen import FrozenBackbone


class LinearProbe(FrozenBackbone):
    """Linear probe: the backbone is frozen and only the new classifier trains."""

    def frozen_layers(self) -> str:
        heads = [self.backbone.get_submodule(name) for name in self.head_names]
        if len(heads) != 1 or not isinstance(heads[0], nn.Linear):
            raise ValueError(f"{type(self.backbone).__name__} has no single linear classifier, whose input is kept")
        if not hasattr(self.backbone, "forward_head"):
            raise ValueError(f"{type(self.backbone).__name__} gives no features apart from its classifier")
        images = self.example_batch().inputs
        # eagerly, because compiled results are not equal bit by bit
        with evaluating(self), torch.no_grad(), self.mixed_dtypes(), eagerly():
            same = torch.equal(self.forward_frozen(self.frozen_features(images)), self(images))
        if not same:
            raise ValueError(
                f"{type(self.backbone).__name__} has more than one linear classifier behind its pooled features, so "
                "that they cannot be kept: leave the cache of features out"
            )
        return "pooled"

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        if not self.heads():
            raise ValueError(
                f"{self.method_name()} trains a classifier, and {type(backbone).__name__} has none of a known form: "
                "use another backbone, such as a ViT, Swin or ResNet"
            )

    def frozen_features(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.backbone.forward_head(self.backbone.forward_features(x), pre_logits=True),)

    def forward_frozen(self, features: tuple[Tensor, ...]) -> Tensor:
        return self.backbone.get_submodule(self.head_names[0])(*features)
