"""MLP head."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_modules.classification import Classification
from methods import PEFTMethod, compose
from methods.mlp_head import MLPHead
from tests.support.batches import as_batch

Build = Callable[..., PEFTMethod]

COUNTS = {"vit_base_patch16_224": 1_776_384}
IDENTITY: dict[str, Any] | None = None  # hidden layers of random weights


@pytest.mark.parametrize("backbone", ["swin_tiny_patch4_window7_224", "convnext_atto", "resnet18"])
def test_layers_before_the_classifier(backbone: str) -> None:
    model = compose(MLPHead, task=Classification)(backbone=backbone, pretrained=False, num_classes=3, mlp_head_layers=2)
    model.configure_model()
    model.eval()
    layers = model.backbone.mlp_head
    images = torch.randn(2, 3, 224, 224)
    (head,) = [model.backbone.get_submodule(name) for name in model.head_names]
    width = head.in_features
    assert model.parameter_counts()["method"] == 2 * (width**2 + 3 * width)
    with torch.no_grad():
        features = model.backbone.forward_head(model.features(images), pre_logits=True).flatten(1)
        hidden = features
        for i in (0, 4):
            hidden = torch.relu(layers[i](hidden)) / (1 + layers[i + 2].eps) ** 0.5  # BatchNorm of fresh statistics
        expected = hidden @ head.weight.T + head.bias
        torch.testing.assert_close(model(images), expected, atol=1e-4, rtol=1e-4)


def test_statistics_train_and_are_saved(build: Build) -> None:
    model = build("mlp_head", mlp_head_layers=1)
    model.configure_model()
    model.train()
    model.loss(as_batch(torch.randn(6, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2]))).backward()
    norm = model.backbone.mlp_head[2]
    assert norm.training
    assert norm.running_mean.any()
    assert "backbone.mlp_head.2.running_mean" in model.delta_state_dict()
    assert all(p.grad is None for p in model.backbone.blocks.parameters())
    model.to(torch.bfloat16)
    assert norm.running_mean.dtype is torch.float32
    assert model.backbone.blocks[0].norm1.weight.dtype is torch.bfloat16


def test_refusals(build: Build) -> None:
    with pytest.raises(ValueError, match=r"mlp_head_dropout=1.5: expected a probability"):
        build("mlp_head", mlp_head_dropout=1.5)
    with pytest.raises(ValueError, match="mlp_head_layers=0: expected at least 1"):
        build("mlp_head", mlp_head_layers=0)
    model = compose(MLPHead, task=Classification)(backbone="deit_tiny_distilled_patch16_224", pretrained=False)
    with pytest.raises(ValueError, match="one linear classifier, and VisionTransformerDistilled has another"):
        model.configure_model()
