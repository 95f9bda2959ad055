"""Methods that read features of a frozen backbone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_modules.batch import Features
from methods import METHODS, PEFTMethod
from methods.core.frozen import FrozenBackbone

Build = Callable[..., PEFTMethod]
FROZEN = [name for name, method in METHODS.items() if issubclass(method, FrozenBackbone)]
OPTIONS: dict[str, dict[str, Any]] = {"hst": {"meta_tokens": 0, "tune_norm": False}}


@pytest.mark.parametrize("method", FROZEN)
def test_features_stand_for_images(method: str, build: Build) -> None:
    model: Any = build(method, **OPTIONS.get(method, {}))
    model.configure_model()
    model.eval()
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        features = Features(model.frozen_features(images))
        assert all(len(tensor) == 4 for tensor in features.tensors)
        assert torch.equal(model(features), model(images))
    assert isinstance(model.frozen_layers(), str)
