"""Features of a frozen backbone give what the images give."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from callbacks.features.reusable import ReusableFeatures
from lightning_modules.batch import Features
from methods import METHODS, PEFTMethod
from tests.conftest import perturb

FROZEN = [name for name, method in METHODS.items() if issubclass(method, ReusableFeatures)]
# by default HST trains in the backbone too
OPTIONS: dict[str, dict[str, Any]] = {"hst": {"meta_tokens": 0, "tune_norm": False}}


@pytest.mark.parametrize("method", FROZEN)
def test_outputs_of_features_are_those_of_images(method: str, build: Callable[..., PEFTMethod]) -> None:
    model: Any = build(method, **OPTIONS.get(method, {}))
    model.configure_model()
    perturb(model)
    model.eval()
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        features = model.frozen_features(images)
        assert all(len(tensor) == 4 for tensor in features)
        torch.testing.assert_close(model(Features(features)), model(images), atol=1e-6, rtol=1e-5)
        # a row belongs to one image, so that a cache may serve rows in any order
        order = torch.tensor([2, 0, 3, 1])
        torch.testing.assert_close(
            model(Features([tensor[order] for tensor in features])), model(images)[order], atol=1e-6, rtol=1e-5
        )


@pytest.mark.parametrize("method", FROZEN)
def test_features_do_not_depend_on_what_trains(method: str, build: Callable[..., PEFTMethod]) -> None:
    model: Any = build(method, **OPTIONS.get(method, {}))
    model.configure_model()
    model.eval()
    images = torch.randn(2, 3, 32, 32)
    before, key = model.frozen_features(images), model.frozen_layers()
    perturb(model, scale=1.0)
    assert all(torch.equal(one, other) for one, other in zip(before, model.frozen_features(images), strict=True))
    assert not any(tensor.requires_grad for tensor in before)
    assert model.frozen_layers() == key != ""
