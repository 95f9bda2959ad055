"""Nearest class mean."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from datamodules import ImageDataset
from methods import PEFTMethod

COUNTS = {"vit_base_patch16_224": 0}
IDENTITY: dict[str, Any] | None = None  # the classifier is computed


def test_logits_are_squared_distances(build: Callable[..., PEFTMethod]) -> None:
    """Up to a number that is equal for all classes, so that shares are those of Snell et al."""
    model: Any = build("nearest_mean")
    model.configure_model()
    features, labels = torch.randn(7, 48), torch.tensor([0, 1, 2, 0, 1, 1, 0])
    model.compute(features, labels)
    means = torch.stack([features[labels == k].mean(0) for k in range(3)])
    found = model.forward_frozen((features,))
    expected = -torch.cdist(features, means).square()
    torch.testing.assert_close(found.softmax(1), expected.softmax(1), atol=1e-5, rtol=1e-4)


def test_a_class_from_one_image(build: Callable[..., PEFTMethod]) -> None:
    model: Any = build("nearest_mean")
    model.configure_model()
    features = F.one_hot(torch.arange(3), 48).float()
    model.compute(features, torch.tensor([2, 0, 1]))
    assert model.forward_frozen((features,)).argmax(1).tolist() == [2, 0, 1]


def test_a_class_without_images_stops_before_the_pass(
    build: Callable[..., PEFTMethod],
    data: Callable[..., ImageDataset],
    trainer: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = property(lambda self: ["daisy", "rose", "tulip", "weed"])
    monkeypatch.setattr(ImageDataset, "class_names", names)
    model: Any = build("nearest_mean", num_classes=4)
    model.compute = None  # is not reached
    with pytest.raises(ValueError, match="method nearest_mean: 1 of 4 classes have no training image, first 'weed'"):
        trainer().fit(model, datamodule=data())
