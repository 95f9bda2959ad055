"""Side-Tuning: A Baseline for Network Adaptation via Additive Side Networks (arXiv:1912.13503).

``f' = sigmoid(a) f + (1 - sigmoid(a)) P s`` with frozen features f, features s of a trained AlexNet and trained a, P.
"""

import pickle
from typing import Any

import torch
from safetensors import SafetensorError
from timm.models import load_state_dict
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import AlexNet_Weights, alexnet

from backbones.inject import Backbone, check_free
from lightning_modules.task import Task
from methods.core.base import PEFTMethod

SMALLEST = 64  # pixels a side; AlexNet's poolings reduce a smaller image to nothing
FILE = AlexNet_Weights.IMAGENET1K_V1.url


class SideNetwork(nn.Module):
    """Blend ``sigmoid(a) f + (1 - sigmoid(a)) P s`` of features f (B, C) and flat maps s (B, 9216) of AlexNet.

    Args:
        dim: Width C of the features.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        with torch.device("meta"):  # no memory for its classifier (58 of 61 million weights), which is not used
            plain = alexnet()
        self.features, self.pool = plain.features.to_empty(device=torch.get_default_device()), plain.avgpool
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                layer.reset_parameters()
        self.project = nn.Linear(256 * 6 * 6, dim, bias=False)
        self.alpha = nn.Parameter(torch.zeros(1))
        self.side: Tensor | None = None  # P s between ``compute`` and ``pre_hook`` of one forward pass

    def compute(self, images: Tensor) -> None:
        """Compute P s (B, C) for images (B, 3, H, W), normalised for the backbone."""
        if min(images.shape[2:]) < SMALLEST:
            images = F.interpolate(images, (SMALLEST, SMALLEST), mode="bilinear")
        self.side = self.project(self.pool(self.features(images)).flatten(1))

    def pre_hook(self, module: nn.Module, args: tuple[Tensor]) -> Tensor:
        """Blended features (B, C), the new input of the classifier."""
        assert self.side is not None, "the backbone's features were not computed before its classifier"
        share, side = self.alpha.sigmoid().to(self.side.dtype), self.side
        self.side = None
        return share * args[0] + (1 - share) * side


class Sidetune(PEFTMethod):
    """Side-tuning (Zhang et al., ECCV 2020, arXiv:1912.13503), beside AlexNet as in VPT's tables ("Sidetune").

    Args:
        sidetune_pretrained: Initial weights of AlexNet: ``true`` for torchvision's ImageNet weights, ``false`` for
            random weights, or the path of a weight file. By default ``true`` if the backbone has pretrained weights.
    """

    mergeable = False
    unmergeable = "its side network stays beside the backbone"
    warm_start_options = (*PEFTMethod.warm_start_options, "sidetune_pretrained")

    def __init__(self, sidetune_pretrained: bool | str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if sidetune_pretrained is None:
            sidetune_pretrained = self.pretrained is not False
        self.sidetune_pretrained = sidetune_pretrained

    def forget_warm_start(self) -> None:
        super().forget_warm_start()
        self.sidetune_pretrained = False

    @classmethod
    def refusal(cls, task: type[Task]) -> str:
        reason = "Sidetune adds to the input of a classifier, and here a head reads maps: use linear_probe or lora"
        return reason if task.dense else super().refusal(task)

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        heads = [backbone.get_submodule(name) for name in self.head_names]
        if len(heads) != 1 or not isinstance(heads[0], nn.Linear):
            raise ValueError(
                f"Sidetune needs one linear classifier, and {type(backbone).__name__} has another head: use a backbone "
                "such as a ViT, Swin or ResNet, or the method linear_probe"
            )
        if getattr(self, "pooling", None) == "attentive":
            raise ValueError(
                "Sidetune adds features of each frame to the input of the classifier, and pooling=attentive has one "
                "input for all frames: pass --model.pooling mean"
            )
        check_free(backbone, "sidetune")
        backbone.sidetune = side = SideNetwork(heads[0].in_features)
        if self.sidetune_pretrained is not False and self.init_from is None:
            side.features.load_state_dict(read_features(self.sidetune_pretrained, side.features))
        heads[0].register_forward_pre_hook(side.pre_hook)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["hyper_parameters"]["sidetune_pretrained"] = False  # the trained values are in the file

    def features(self, x: Tensor) -> Tensor:
        if self.adapted:
            self.backbone.sidetune.compute(x)
        return super().features(x)


def read_features(pretrained: str | bool, features: nn.Module) -> dict[str, Tensor]:
    """Read AlexNet's convolutions from a weight file or from the download.

    Args:
        pretrained: Path of a weight file, or True for the download.
        features: The convolutions, whose names and shapes the file must have.

    Raises:
        FileNotFoundError: If there is no file, or no network.
        ValueError: If the file is damaged or holds other tensors.
    """
    remedy = f"Download {FILE} and pass --model.sidetune_pretrained PATH, or false to start from random weights"
    given = f"sidetune_pretrained={pretrained!r}"
    try:
        if pretrained is True:
            state = torch.hub.load_state_dict_from_url(FILE, weights_only=True, check_hash=True, map_location="cpu")
        else:
            state = load_state_dict(str(pretrained), weights_only=True)
    except OSError as error:  # no network, no file
        raise FileNotFoundError(f"{given}: no AlexNet weights ({error}). {remedy}") from error
    except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise ValueError(f"{given} is no readable weight file. {remedy}") from error
    found = {name.removeprefix("features."): t for name, t in state.items() if name.startswith("features.")}
    if {n: t.shape for n, t in found.items()} != {n: t.shape for n, t in features.state_dict().items()}:
        raise ValueError(f"{given} holds no AlexNet of torchvision's form. {remedy}")
    return found
