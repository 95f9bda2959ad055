"""Video classification: an image network on each frame of a clip, and one class for all frames."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from backbones.anatomy import token_sequence
from backbones.timm_models import classifier_layers, init_head
from lightning_modules.batch import Batch
from lightning_modules.classification import Classification
from lightning_modules.heads.attentive_pool import AttentivePool


class VideoClassification(Classification):
    """Video classification with a timm backbone for images.

    The frames of B clips are the rows of a batch of images (B T, 3, H, W), so that a method adapts the backbone as it
    does for images. No layer knows the order of the frames: a clip that runs backwards gets the same class.

    Args:
        frames: Frames T of a clip; on the command line it comes from the data.
        pooling: Way from frames to the class. ``attentive``: one learned query attends to the tokens of all frames of a
            plain ViT, before the classifier. ``mean``: mean over the frames of the logits of each, for every backbone.
    """

    unit = "clip"
    links: ClassVar[dict[str, str]] = Classification.links | {"frames": "frames"}
    necks = ("clip_pool",)
    not_options = (*Classification.not_options, "mixup", "cutmix")  # which mix single images

    def __init__(self, frames: int = 8, pooling: Literal["attentive", "mean"] = "attentive", **kwargs: Any) -> None:
        if frames < 1:
            raise ValueError(f"frames={frames}: expected at least 1 frame of a clip")
        self.frames, self.pooling = frames, pooling  # here, because the constructor of Classification calls ``build``
        super().__init__(mixup=0.0, cutmix=0.0, **kwargs)

    # model

    def build(self) -> None:
        """Build a new plain backbone with a fresh classifier, and the pooling.

        Raises:
            ValueError: If the backbone has no tokens to attend to, or several classifiers.
        """
        super().build()
        self.clip_pool: AttentivePool | None = None
        if self.pooling == "mean":
            return
        use = "pooling=attentive reads tokens; --model.pooling mean is for every backbone"
        width = token_sequence(self.backbone, use).width
        if len(classifier_layers(self.backbone)) != 1:
            raise ValueError(
                f"pooling=attentive: {type(self.backbone).__name__} has {len(classifier_layers(self.backbone))} "
                "classifier layers, expected 1: pass --model.pooling mean"
            )
        self.backbone.reset_classifier(self.num_classes, "")  # without pooling of its own, so that all tokens count
        init_head(self.classifier(self.backbone), self.head_init)
        if self.head_batch_norm:
            self.add_head_norm()
        self.clip_pool = AttentivePool(width, self.backbone.blocks[0].attn.num_heads)

    @staticmethod
    def classifier(backbone: nn.Module) -> nn.Module:
        """The only classifier layer of a backbone."""
        (layer,) = classifier_layers(backbone).values()
        return layer

    def heads(self) -> dict[str, nn.Module]:
        return super().heads() | ({"clip_pool": self.clip_pool} if self.clip_pool is not None else {})

    def resize_head(self, width: int, batch_norm: bool = False) -> None:
        if self.clip_pool is not None:
            raise ValueError(
                f"pooling=attentive reads tokens of {self.clip_pool.query.shape[2]} channels, and this method gives "
                f"{width} channels of its own: pass --model.pooling mean"
            )
        super().resize_head(width, batch_norm)

    def predict_from(self, features: Any) -> Tensor:
        """Logits (B, K) of the tokens (B T, N, D) of clips; with mean pooling logits (B T, K) of their frames."""
        if self.clip_pool is None:
            return super().predict_from(features)
        return self.attend(self.backbone, features)

    def attend(self, backbone: nn.Module, tokens: Tensor) -> Tensor:
        """Logits (B, K) of tokens (B T, N, D) by the pooling and the classifier of a backbone."""
        assert self.clip_pool is not None
        return self.classifier(backbone)(self.clip_pool(tokens.unflatten(0, (-1, self.frames)).flatten(1, 2)))

    def forward(self, inputs: Any) -> Tensor:
        """Logits (B, K) of clips, whose frames are images (B T, 3, H, W)."""
        outputs = super().forward(inputs)
        return outputs if self.clip_pool is not None else self.mean(outputs)

    def mean(self, logits: Tensor) -> Tensor:
        """Mean (B, K) of the logits (B T, K) of frames, in which the clips follow each other."""
        return logits.unflatten(0, (-1, self.frames)).mean(1)

    def outputs_with(self, backbone: Any, inputs: Tensor) -> Tensor:
        """Logits (B, K) of clips (B T, 3, H, W) for a plain backbone, under the pooling of this task."""
        if self.clip_pool is None:
            return self.mean(super().outputs_with(backbone, inputs))
        return self.attend(backbone, backbone.forward_features(inputs))

    def embedding_layer(self) -> nn.Module:
        raise ValueError(
            "embeddings: the frames and views of a clip are several inputs of the classifier; leave it out"
        )

    def export(self, backbone: nn.Module, folder: Path) -> None:
        """Write a timm model of single frames, and the attentive pooling beside it as ``pool.safetensors``."""
        super().export(backbone, folder)
        if self.clip_pool is not None:
            state = {f"clip_pool.{name}": tensor.contiguous() for name, tensor in self.clip_pool.state_dict().items()}
            save_file(state, folder / "pool.safetensors")

    # evaluation

    def infer(self, batch: Batch) -> Tensor:
        """Mean logits (B, K) over the views of each clip, which follow each other in the batch."""
        return super().infer(batch).unflatten(0, (batch.size, -1)).mean(1)

    def passes(self, batch: Batch) -> int:
        return len(batch.inputs) // (self.frames * batch.size)

    def example_batch(self) -> Batch:
        """One clip of zeros (T, C, H, W) of class 0."""
        images = self.example_images().repeat(self.frames, 1, 1, 1)
        return Batch.of(images, torch.zeros(1, dtype=torch.long, device=images.device))
