"""BatchNorm before a classifier: statistics, merge, files and refusals."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from checkpoints.delta import write_adapter
from lightning_modules.classification import Classification
from lightning_modules.heads.feature_norm import FeatureNorm, merge_norms, norm_input
from methods import PEFTMethod
from tests.conftest import checkpoint_of
from tests.support.batches import as_batch

Build = Callable[..., PEFTMethod]


def trained(build: Build, method: str = "lora") -> Any:
    """A model after one training pass, with statistics that differ from those of the start."""
    model: Any = build(method, head_batch_norm=True)
    model.configure_model()
    model.train().loss(as_batch(torch.randn(8, 3, 32, 32) * 2 + 1, torch.arange(8) % 3))
    return model.eval()


@pytest.mark.parametrize("bias", [True, False])
def test_merge_into_a_classifier(bias: bool) -> None:
    layer, norm = nn.Linear(6, 4, bias=bias), FeatureNorm(6)
    model = nn.Sequential(layer)
    norm_input(layer, norm)
    features = torch.randn(32, 6) * 3 + 2
    model(features)
    norm.eval()
    by_hand = (features - features.mean(0) * 0.1) / (0.9 + 0.1 * features.var(0) + 1e-6).sqrt()
    torch.testing.assert_close(model(features), nn.functional.linear(by_hand, layer.weight, layer.bias))
    merged = deepcopy(model)
    merge_norms(merged)
    torch.testing.assert_close(merged(features), model(features))
    assert not merged[0]._forward_pre_hooks
    assert layer._forward_pre_hooks


@pytest.mark.parametrize("method", ["lora", "linear_probe", "ssf"])
def test_merged_model_is_plain(method: str, build: Build) -> None:
    model, images = trained(build, method), torch.randn(4, 3, 32, 32)
    merged: Any = model.merge()
    assert set(merged.state_dict()) == set(timm.create_model(model.backbone_name, **model.backbone_args).state_dict())
    torch.testing.assert_close(merged(images), model(images), atol=1e-5, rtol=0)


def test_adapter_holds_the_statistics(build: Build, tmp_path: Path) -> None:
    model, images = trained(build), torch.randn(4, 3, 32, 32)
    assert {"head_norm.running_mean", "head_norm.running_var"} <= model.delta_state_dict().keys()
    write_adapter(tmp_path / "adapter", checkpoint_of(model))
    assert torch.equal(PEFTMethod.from_delta(tmp_path / "adapter")(images), model(images))
    assert model.to(torch.bfloat16).head_norm.running_var.dtype is torch.float32


def test_cached_features(build: Build) -> None:
    model, images = trained(build, "linear_probe"), torch.randn(4, 3, 32, 32)
    model.frozen_layers()
    assert torch.equal(model.forward_frozen(model.frozen_features(images)), model(images))


def test_one_row_and_two_classifiers_are_refused(build: Build) -> None:
    model: Any = build("lora", head_batch_norm=True).train()
    with pytest.raises(ValueError, match="at least 2 images a device"):
        model(torch.randn(1, 3, 32, 32))
    with pytest.raises(ValueError, match="no single linear classifier"):
        Classification("deit_tiny_distilled_patch16_224", pretrained=False, num_classes=3, head_batch_norm=True)
