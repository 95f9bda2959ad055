"""Linear probe: ``logits = W f(x) + b`` with frozen features f; only W and b train."""

from torch import Tensor, nn

from methods.core.frozen import FrozenBackbone


class LinearProbe(FrozenBackbone):
    """Linear probe: the backbone is frozen and only the new classifier trains."""

    def frozen_layers(self) -> str:
        heads = [self.backbone.get_submodule(name) for name in self.head_names]
        if len(heads) != 1 or not isinstance(heads[0], nn.Linear):
            raise ValueError(f"{type(self.backbone).__name__} has no single linear classifier, whose input is kept")
        return "pooled"

    def frozen_features(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.backbone.forward_head(self.backbone.forward_features(x), pre_logits=True),)

    def forward_frozen(self, features: tuple[Tensor, ...]) -> Tensor:
        return self.backbone.get_submodule(self.head_names[0])(*features)
