"""Every method on detection: it trains on images of several sizes, is saved and merges, or is refused before data."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import seed_everything
from torch import Tensor

from checkpoints.delta import write_adapter
from commands.methods.cell import check_step, select
from lightning_modules.detection import Detection
from methods import METHODS, PEFTMethod, compose
from tests.conftest import STACK, checkpoint_of, perturb
from tests.lightning_modules.test_detection import OPTIONS, SIZES, squares
from tests.methods.test_dense_contract import OPTIONS as METHOD_OPTIONS
from tests.methods.test_dense_contract import REFUSED, SWIN

SERVING = [name for name in METHODS if name not in REFUSED]
ON_SWIN = ["lora", "ssf", "full"]
IMAGES = [squares(2, size) for size in SIZES]


def build(method: str, **options: Any) -> PEFTMethod:
    """A method on a small backbone with Faster R-CNN for two classes, with random weights, not adapted yet."""
    names = STACK[method].split("+")
    own: dict[str, Any] = {option: value for name in names for option, value in METHOD_OPTIONS.get(name, {}).items()}
    seed_everything(0, verbose=False)
    cls = compose(*(METHODS[name] for name in names), task=Detection)
    model: Any = cls(**OPTIONS | {"head": "faster_rcnn"} | own | options)
    model.budget_unit = 1e4  # of SPT, whose budgets are millions of parameters otherwise
    return model


@torch.no_grad()
def logits(model: Any) -> list[Tensor]:
    """Logits at the anchors of images of three sizes, one after the other."""
    return [model.logits(model(batch.inputs)) for batch in IMAGES]


def check(model: Any, folder: Path) -> None:
    """Train a step at each size, evaluate all sizes twice, save, load and merge."""
    model.adapt_before_data()
    select(model, IMAGES[0])
    for batch in IMAGES:
        check_step(model, batch)
        model.zero_grad()
    perturb(model, 0.01)
    expected = logits(model.eval())
    for first, second in zip(expected, logits(model), strict=True):
        assert torch.equal(first, second), "a size changes the outputs of another one"
    write_adapter(folder, checkpoint_of(model))
    seed_everything(0, verbose=False)  # for the same random backbone
    loaded = type(model).from_delta(folder).eval()
    for first, second in zip(expected, logits(loaded), strict=True):
        torch.testing.assert_close(second, first, atol=1e-5, rtol=1e-5)
    if model.mergeable:
        merged = model.merge()
        for first, batch in zip(expected, IMAGES, strict=True):
            with torch.no_grad():
                found = model.logits(model.outputs_with(merged, batch.inputs))
            torch.testing.assert_close(found, first, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", SERVING)
def test_method(method: str, tmp_path: Path) -> None:
    check(build(method), tmp_path)


@pytest.mark.parametrize("method", ON_SWIN)
def test_method_on_windows(method: str, tmp_path: Path) -> None:
    """Windows have positions of their own, so that maps of any size serve."""
    args = SWIN["backbone_args"] | {"strict_img_size": False}  # type: ignore[operator]
    check(build(method, backbone=SWIN["backbone"], backbone_args=args), tmp_path)


@pytest.mark.parametrize("method", REFUSED)
def test_refused(method: str) -> None:
    """Before any data, with the reason and another method."""
    with pytest.raises(ValueError, match=rf"{REFUSED[method]}.*: use "):
        build(method).adapt_before_data()


def test_own_pyramid_of_hst() -> None:
    """HST's maps have strides of 4 to 32 pixels of the image, whatever the patches are, at each of three sizes."""
    model: Any = build("hst")
    model.configure_model()
    assert model.decoder.rpn.anchor_generator.strides == [4, 8, 16, 32, 64]
    assert model.neck.enlarge is None
    for batch, (height, width) in zip(IMAGES, SIZES, strict=True):
        maps = model.eval().features(batch.inputs)
        assert [tuple(x.shape[2:]) for x in maps] == [(-(-height // s), -(-width // s)) for s in (4, 8, 16, 32)]


def test_tokens_of_dyt() -> None:
    """The kept share is over the patches of the padded batch, at each of three sizes."""
    model: Any = build("dyt")
    model.configure_model()
    for batch, (height, width) in zip(IMAGES, SIZES, strict=True):
        terms = model.train().terms(batch)
        assert {"rate_loss", "complete_loss", "distill_loss", "loss_objectness"} <= terms.keys()
        with model.masks() as masks, torch.no_grad():
            model.eval().infer(batch)
        assert all(mask.shape == (2, height * width // 64) for mask in masks)
