"""Heat maps: they point at the pixels that decide, and roll-out is the product that its paper states."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image

from callbacks.explanations import Explanations, attentions, grad_cam, overlay, rollout
from datamodules import ImageDataset
from lightning_modules.classification import Classification
from methods import METHODS, PEFTMethod, compose
from tests.conftest import perturb, random_tiny

Build = Callable[..., PEFTMethod]
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def adapted(method: str, **options: Any) -> Any:
    model = random_tiny(method, **options)
    model.configure_model()
    perturb(model)
    return model.eval()


@pytest.mark.parametrize(("kind", "method"), [("gradcam", "vpt"), ("rollout", "adaptformer")])
def test_pictures_of_a_run(
    kind: Any,
    method: str,
    build: Build,
    data: Callable[..., ImageDataset],
    trainer: Callable[..., Trainer],
    tmp_path: Path,
) -> None:
    model: Any = build(method)
    trainer(callbacks=[Explanations(kind)], limit_predict_batches=2).predict(model, datamodule=data(eval_batch_size=3))
    pictures = sorted((tmp_path / "explanations").iterdir())
    assert [path.name for path in pictures] == [f"{i:06d}_{i % 5}.png" for i in range(6)]
    with Image.open(pictures[0]) as picture:
        assert picture.size == (32, 32)
    assert any(p.requires_grad for n, p in model.named_parameters() if "blocks" in n or "prompt" in n)


@pytest.mark.parametrize("method", ["lora", "vpt", "dyt", "linear_probe"])
def test_grad_cam_of_tokens(method: str) -> None:
    model = adapted(method)
    maps = grad_cam(model, IMAGES, torch.tensor([0, 1]))
    assert maps.shape == (2, 4, 4)
    assert float(maps.amin()) == 0
    assert torch.equal(maps.amax((1, 2)), torch.ones(2))


def test_grad_cam_finds_the_bright_corner() -> None:
    """A classifier of the mean over a map: the gradient is equal everywhere, so the map is that of the activations."""
    args = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}
    model: Any = compose(METHODS["linear_probe"], task=Classification)(
        backbone="convnext_tiny", pretrained=False, backbone_args=args, num_classes=2
    )
    model.configure_model()
    model.eval()
    feature = torch.zeros(1, 8, 4, 4)
    feature[0, :, 1, 2] = 1.0
    model.features = lambda images: feature.clone()
    model.predict_from = lambda found: torch.stack([found.mean((1, 2, 3)), -found.mean((1, 2, 3))], 1)
    heat = grad_cam(model, IMAGES[:1], torch.tensor([0]))[0]
    assert heat.argmax() == 1 * 4 + 2
    assert float(heat.sum()) == 1


def test_roll_out_is_the_product_of_the_attention() -> None:
    model = adapted("linear_probe")
    maps = rollout(model, IMAGES)
    kept: list[torch.Tensor] = []
    with torch.no_grad():
        x = model.backbone._pos_embed(model.backbone.patch_embed(IMAGES))
        for block in model.backbone.blocks:
            tokens = block.norm1(x)
            q, k, _ = block.attn.qkv(tokens).view(2, 17, 3, 3, 16).permute(2, 0, 3, 1, 4)
            kept.append((q @ k.transpose(-1, -2) / 4).softmax(-1).mean(1))
            x = block(x)
    eye = torch.eye(17)
    expected = ((kept[1] + eye) / 2 @ ((kept[0] + eye) / 2))[:, 0, 1:].view(2, 4, 4)
    low, high = expected.amin((1, 2), keepdim=True), expected.amax((1, 2), keepdim=True)
    torch.testing.assert_close(maps, (expected - low) / (high - low), atol=1e-4, rtol=0)
    assert all(layer.fused_attn for layer in attentions(model.backbone))


def test_backbones_without_attention() -> None:
    model: Any = compose(METHODS["linear_probe"], task=Classification)(
        backbone="resnet18", pretrained=False, num_classes=2
    )
    with pytest.raises(ValueError, match="explain=rollout: a map over the patches needs their tokens, and ResNet"):
        attentions(model.backbone)
    with pytest.raises(ValueError, match="E2VPT changes the attention or its tokens: use gradcam"):
        rollout(adapted("e2vpt"), IMAGES)


def test_overlay_of_grey_images() -> None:
    heat = torch.tensor([[0.0, 1.0]])
    picture = np.asarray(overlay(torch.full((1, 4, 8), 100, dtype=torch.uint8), heat)).astype(int)
    assert picture.shape == (4, 8, 3)
    assert picture[0, -1].sum() > picture[0, 0].sum() + 100
