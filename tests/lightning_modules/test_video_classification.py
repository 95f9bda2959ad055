"""Video classification."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from lightning_modules.batch import Batch
from lightning_modules.video_classification import VideoClassification
from methods import METHODS, compose
from tests.conftest import BACKBONE, TINY, perturb

OPTIONS: dict[str, Any] = {"backbone": BACKBONE, "backbone_args": TINY, "pretrained": False}
OPTIONS |= {"num_classes": 3, "frames": 2}
both = pytest.mark.parametrize("pooling", ["attentive", "mean"])


def clips(count: int = 3, views: int = 1) -> Batch:
    """Clips of two frames in the form of a batch on its device."""
    draw = torch.Generator().manual_seed(0)
    return Batch.of(torch.randn(count * views * 2, 3, 32, 32, generator=draw), torch.arange(count) % 3)


@both
def test_order_of_frames(pooling: str) -> None:
    """A clip and the same clip backwards have equal logits, because no layer knows the order."""
    task, frames = VideoClassification(**OPTIONS, pooling=pooling).eval(), clips().inputs
    with torch.no_grad():
        logits = task(frames)
        backwards = task(frames.unflatten(0, (-1, 2)).flip(1).flatten(0, 1))
        other = task(frames.flip(0))
    assert logits.shape == (3, 3)
    torch.testing.assert_close(backwards, logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(other.flip(0), logits, atol=1e-5, rtol=1e-5)  # and clips do not mix
    assert not torch.allclose(other, logits, atol=1e-4)


def test_mean_of_frames() -> None:
    """Its logits are the mean of those of an image classifier."""
    task, frames = VideoClassification(**OPTIONS, pooling="mean").eval(), clips().inputs
    with torch.no_grad():
        torch.testing.assert_close(task(frames), task.backbone(frames).unflatten(0, (-1, 2)).mean(1))


@both
def test_views(pooling: str) -> None:
    """An evaluation averages the logits of the views of a clip."""
    task, batch = VideoClassification(**OPTIONS, pooling=pooling).eval(), clips(2, views=3)
    with torch.no_grad():
        logits = task.infer(batch)
        alone = torch.cat([task(view) for view in batch.inputs.split(2)])
    torch.testing.assert_close(logits, alone.unflatten(0, (2, 3)).mean(1), atol=1e-5, rtol=1e-5)
    assert (task.passes(batch), task.passes(clips(2))) == (3, 1)


def test_learns_colours() -> None:
    """Only the pooling and the classifier train."""
    model: Any = compose(METHODS["linear_probe"], task=VideoClassification)(**OPTIONS)
    model.configure_model()
    assert model.train().parameter_counts().keys() == {"method", "neck", "head"}
    batch = clips(6)
    for number, label in enumerate(batch.targets):
        batch.inputs[2 * number : 2 * number + 2, label] += 2
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()
    assert (model.eval().infer(batch).argmax(1) == batch.targets).all()
    counts = model.parameter_counts()
    assert counts["neck"] == sum(p.numel() for p in model.clip_pool.parameters()) == 4 * 48**2 + 3 * 48 + 48 + 6 * 48
    assert counts["method"] == 0


@both
def test_export(pooling: str, tmp_path: Path) -> None:
    """A plain timm model, with the pooling of this task, gives the outputs of the model."""
    model: Any = compose(METHODS["lora"], task=VideoClassification)(**OPTIONS, pooling=pooling)
    model.configure_model()
    perturb(model)
    merged, frames = model.eval().merge(), clips().inputs
    model.export(merged, tmp_path)
    plain = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(model.outputs_with(plain, frames), model(frames), atol=1e-5, rtol=1e-5)
    assert (tmp_path / "pool.safetensors").exists() == (pooling == "attentive")
    if pooling == "attentive":
        assert load_file(tmp_path / "pool.safetensors").keys() == {n for n in model.state_dict() if "pool." in n}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, "frames=0: expected at least 1 frame"),
        ({"backbone": "resnet18", "backbone_args": {}}, "pooling=attentive reads tokens; --model.pooling mean is for"),
        ({"backbone": "deit_tiny_distilled_patch16_224", "backbone_args": {}}, "2 classifier layers, expected 1"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoClassification(**OPTIONS | options)


def test_embeddings_are_refused() -> None:
    with pytest.raises(ValueError, match="several inputs of the classifier; leave it out"):
        VideoClassification(**OPTIONS).embedding_layer()


def test_norm_before_the_classifier() -> None:
    """It norms the pooled feature of each clip."""
    task = VideoClassification(**OPTIONS, head_batch_norm=True).train()
    task(clips().inputs)
    assert task.head_norm is not None
    assert task.head_norm.running_mean.any()  # type: ignore[operator, union-attr]
