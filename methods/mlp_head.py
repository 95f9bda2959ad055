"""MLP head, "Mlp-(k + 1)" in the tables of Visual Prompt Tuning (arXiv:2203.12119).

``logits = W h_k(...h_1(f(x))) + b`` with frozen features f and hidden layers ``h = dropout(BatchNorm(relu(V z + c)))``.
"""

from typing import Any

from torch import Tensor, nn

from backbones.inject import Backbone, check_free
from lightning_modules.task import Task
from methods.linear_probe import LinearProbe


class HiddenLayers(nn.Sequential):
    """Layers ``Linear, ReLU, BatchNorm, Dropout`` of one width before the classifier.

    Args:
        dim: Features C of the classifier's input (B, C).
        layers: Number k of layers.
        dropout: Probability of dropping a feature.
    """

    def __init__(self, dim: int, layers: int, dropout: float) -> None:
        super().__init__()
        for _ in range(layers):
            linear = nn.Linear(dim, dim)
            nn.init.kaiming_normal_(linear.weight, mode="fan_out")
            nn.init.zeros_(linear.bias)
            self.extend([linear, nn.ReLU(), nn.BatchNorm1d(dim), nn.Dropout(dropout)])

    def pre_hook(self, module: nn.Module, args: tuple[Tensor]) -> Tensor:
        return self(args[0])


class MLPHead(LinearProbe):
    """MLP head: hidden layers before the classifier train, on a frozen backbone ("Mlp" in VPT's tables).

    Args:
        mlp_head_layers: Number k of hidden layers, each as wide as the features. VPT's "Mlp-3" counts the classifier
            too: its code has 2.
        mlp_head_dropout: Probability of dropping a feature after each hidden layer.
    """

    mergeable = False
    unmergeable = "its hidden layers stay before the classifier"

    def __init__(self, mlp_head_layers: int = 3, mlp_head_dropout: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if mlp_head_layers <= 0:
            raise ValueError(f"mlp_head_layers={mlp_head_layers}: expected at least 1; linear_probe has none")
        if not 0 <= mlp_head_dropout < 1:
            raise ValueError(f"mlp_head_dropout={mlp_head_dropout}: expected a probability of at least 0 and below 1")
        self.mlp_head_layers, self.mlp_head_dropout = mlp_head_layers, mlp_head_dropout

    @classmethod
    def refusal(cls, task: type[Task]) -> str:
        reason = "MLPHead puts layers before a classifier, and here a head reads maps: use linear_probe or lora"
        return reason if task.dense else super().refusal(task)

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        heads = [backbone.get_submodule(name) for name in self.head_names]
        if len(heads) != 1 or not isinstance(heads[0], nn.Linear):
            raise ValueError(
                f"MLPHead needs one linear classifier, and {type(backbone).__name__} has another head: use a backbone "
                "such as a ViT, Swin or ResNet, or the method linear_probe"
            )
        check_free(backbone, "mlp_head")
        backbone.mlp_head = HiddenLayers(heads[0].in_features, self.mlp_head_layers, self.mlp_head_dropout)
        heads[0].register_forward_pre_hook(backbone.mlp_head.pre_hook)
