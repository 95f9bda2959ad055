"""The picture of the tokens that a method keeps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from lightning import Trainer
from torch import Tensor

from callbacks.kept_tokens import KeptTokens, write_picture
from datamodules import ImageDataset
from methods import PEFTMethod

Build = Callable[..., PEFTMethod]
Data = Callable[..., ImageDataset]
MakeTrainer = Callable[..., Trainer]


def test_the_first_images_of_a_test_are_drawn(
    build: Build, data: Data, trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn: list[tuple[Tensor, Tensor]] = []
    monkeypatch.setattr("callbacks.kept_tokens.write_picture", lambda path, *tensors: drawn.append(tensors))
    run = trainer()
    run.test(build("dyt"), datamodule=data(batch_size=10), verbose=False)  # DyT adds the callback
    ((shown, kept),) = drawn
    assert shown.shape == (8, 3, 32, 32), "of 10 images in the first batch; the second has 5"
    assert kept.shape == (8, 1, 4, 4), "one share for each patch of 8 x 8 in an image of 32 x 32"
    assert ((kept * 2) % 1 == 0).all(), "of two blocks, none, one or both keep a patch"
    (callback,) = [callback for callback in run.callbacks if isinstance(callback, KeptTokens)]  # type: ignore[attr-defined]
    assert not len(callback.shown), "images of a run are not drawn by the next"


def test_the_mode_stays(build: Build, data: Data, trainer: MakeTrainer, tmp_path: Path) -> None:
    model = build("dyt")
    trainer(max_steps=1).fit(model, datamodule=data())
    assert model.training
    assert (tmp_path / "kept_tokens.png").exists()


@pytest.mark.parametrize("shade", [0.0, 3.0])
def test_a_picture_of_equal_values(shade: float, tmp_path: Path) -> None:
    """Neither an image of one colour nor a block that keeps nothing is divided by zero."""
    write_picture(tmp_path / "picture.png", torch.full((2, 3, 8, 8), shade), torch.zeros(2, 1, 2, 2))
    assert matplotlib.image.imread(tmp_path / "picture.png").shape[2] >= 3


def test_kept_patches_are_brighter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("matplotlib.axes.Axes.imshow", lambda axis, picture: shown.append(picture))
    kept = torch.tensor([[[[1.0, 0.0], [0.5, 0.0]]]])
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    write_picture(tmp_path / "picture.png", images, kept)
    above, below = (torch.as_tensor(picture) for picture in shown)
    share = below / above.clamp(min=1e-6)
    for rows, columns, brightness in (
        (slice(4), slice(4), 1.0),
        (slice(4, 8), slice(4), 0.575),
        (slice(4), slice(4, 8), 0.15),
    ):
        part = share[rows, columns][above[rows, columns] > 0.01]
        torch.testing.assert_close(part, torch.full_like(part, brightness))
