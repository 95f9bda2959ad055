"""Tasks whose head is the classifier of a timm network."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, Literal

import torch
from timm.models import save_for_hf
from torch import Tensor, nn

from backbones.timm_inputs import check_input_size
from backbones.timm_models import (
    bias_arguments,
    build_backbone,
    classifier_layers,
    head_modules,
    init_head,
    input_config,
    reset_head,
)
from lightning_modules.batch import Batch
from lightning_modules.heads.feature_norm import FeatureNorm, norm_input
from lightning_modules.task import Task


class TimmHead(Task):
    """A task on images whose head is the classifier of a timm network; a subclass gives ``outputs``.

    Args:
        backbone: Full timm tag such as ``vit_base_patch16_224.augreg_in21k``, or ``local-dir:PATH``.
        pretrained: ``true`` for the weights of the tag, ``false`` for random ones, or the path of a weight file.
        backbone_args: Further arguments of ``timm.create_model``.
        drop_path: Stochastic depth rate of the last block; the rate grows linearly over the blocks.
        head_init: Initial weights of the new classifier. ``trunc_normal``: std 0.02, as in timm's ViT. ``adaptformer``:
            the same with std 0.01. ``linear``: torch's default of linear layers. ``zero``: zero. ``vpt``: Kaiming
            normal, and a bias of -4.6, so that each class starts at a sigmoid of 0.01.
        head_batch_norm: Whether a BatchNorm without weights norms the features before the classifier, as in the linear
            probe of MAE and in AdaptFormer. A merge computes it into the weights of the classifier.
        eval_flip: Whether an evaluation averages the outputs for an image and for its mirror image.
    """

    def __init__(
        self,
        backbone: str = "vit_base_patch16_224.augreg_in21k",
        pretrained: bool | str = True,
        backbone_args: dict[str, Any] | None = None,
        drop_path: float = 0.0,
        head_init: Literal["trunc_normal", "adaptformer", "linear", "zero", "vpt"] = "trunc_normal",
        head_batch_norm: bool = False,
        eval_flip: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path={drop_path}: expected a probability of at least 0 and below 1")
        self.backbone_name, self.pretrained = backbone, pretrained
        self.backbone_args, self.drop_path, self.head_init = dict(backbone_args or {}), drop_path, head_init
        self.head_batch_norm, self.eval_flip = head_batch_norm, eval_flip

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Number of outputs of the head, K."""

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs, which an exported model has; empty if they have none."""
        return []

    def build(self) -> None:
        """Build a new plain backbone with a fresh classifier."""
        args = self.backbone_args | ({"drop_path_rate": self.drop_path} if self.drop_path else {})
        self.backbone = build_backbone(self.backbone_name, self.pretrained, args)
        reset_head(self.backbone, self.outputs, self.head_init)
        self.head_norm: FeatureNorm | None = None
        if self.head_batch_norm:
            self.add_head_norm()

    def add_head_norm(self) -> None:
        """Norm the features before the classifier.

        Raises:
            ValueError: If the backbone has no single linear classifier.
        """
        layers = list(classifier_layers(self.backbone).values())
        if len(layers) != 1 or not isinstance(layers[0], nn.Linear):
            raise ValueError(
                f"head_batch_norm=True: {type(self.backbone).__name__} has no single linear classifier, whose input a "
                "BatchNorm could norm; leave it out"
            )
        self.head_norm = FeatureNorm(layers[0].in_features)
        norm_input(layers[0], self.head_norm)

    def heads(self) -> dict[str, nn.Module]:
        return {f"backbone.{name}": head for name, head in head_modules(self.backbone).items()}

    @property
    def input_config(self) -> dict[str, Any]:
        """Size, mean, std and interpolation of the backbone's training images, which datamodules use."""
        return input_config(self.backbone)

    def check_input_size(self, size: tuple[int, int, int]) -> None:
        """Refuse images of a size (C, H, W) that the backbone cannot take; a datamodule asks before it reads any.

        Raises:
            ValueError: With the size, the expected one and the options.
        """
        check_input_size(self.backbone, size, tuple(self.input_config["input_size"]))

    def infer(self, batch: Batch) -> Any:
        """Outputs (B, K) for a batch; with ``eval_flip`` the mean of those for images and their mirror images."""
        outputs = super().infer(batch)
        return (outputs + self(batch.inputs.flip(3))) / 2 if self.eval_flip else outputs

    def predict_from(self, features: Tensor) -> Tensor:
        """Outputs (B, K) of features."""
        return self.backbone.forward_head(features)

    def outputs_with(self, backbone: nn.Module, inputs: Tensor) -> Tensor:
        """Outputs (B, K) of images for a plain backbone, in which the head lies."""
        return backbone(inputs)

    def embedding_layer(self) -> nn.Module:
        """Layer whose input is the embedding of an image: the classifier, or the first one of several.

        Raises:
            ValueError: If the backbone has no classifier of a known form.
        """
        layers = classifier_layers(self.backbone)
        if not layers:
            raise ValueError(f"embeddings: {type(self.backbone).__name__} has no classifier whose input could be kept")
        return next(iter(layers.values()))

    def resize_head(self, width: int, batch_norm: bool = False) -> None:
        for name in classifier_layers(self.backbone):
            new = nn.Linear(width, self.outputs)
            init_head(new, self.head_init)
            self.backbone.set_submodule(name, new)
        if batch_norm or self.head_batch_norm:
            self.add_head_norm()

    def export(self, backbone: nn.Module, folder: Path) -> None:
        """Write ``model.safetensors`` and ``config.json`` of a timm model, with the names of the outputs.

        If the backbone has biases that the plain one lacks, the config has timm's argument for them, if there is one.
        """
        names = {"label_names": self.output_names} if self.output_names else None
        more = backbone.state_dict().keys() - self.backbone.state_dict().keys()
        args = bias_arguments(self.backbone_name, self.backbone_args, backbone) if more else None
        save_for_hf(backbone, str(folder), model_config=names, model_args=args, safe_serialization=True)

    def example_images(self) -> Tensor:
        """One image of zeros (1, C, H, W), in the dtype of the frozen weights."""
        device = next(self.backbone.parameters()).device  # self.device is that of the run before the weights are there
        return torch.zeros(1, *self.input_config["input_size"], device=device).to(self.dtype)
