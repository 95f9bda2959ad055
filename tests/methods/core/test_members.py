"""What members of one run answer alike."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_modules.batch import Features
from methods import PEFTMethod
from methods.core.members import Members
from methods.core.parallel_settings import ParallelSettings

Build = Callable[..., PEFTMethod]


@pytest.fixture
def joint(build: Build) -> Any:
    return ParallelSettings(
        build("last"), [{"name": "a", "lr": 0.1}, {"name": "b", "lr": 0.2}], export_member="b"
    ).eval()


def test_verbs_are_those_of_a_member(joint: Any) -> None:
    first, second = joint.each()
    assert isinstance(joint, Members)
    assert joint.backbone is first.backbone
    assert joint.headline == first.headline
    assert list(joint.heads()) == ["backbone.head"]
    assert joint.frozen_layers() == first.frozen_layers()
    assert joint.method_name() == "LAST"
    assert joint.identity() == first.identity()
    assert list(joint.metrics()) == list(first.metrics())
    assert joint.chosen is second


def test_forward_is_that_of_the_exported_member(joint: Any) -> None:
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(joint(images), joint.each()[1](images))
        features = Features(joint.frozen_features(images))
        assert torch.equal(joint.forward_frozen(tuple(features.tensors)), joint(images))


def test_files_and_merging(joint: Any) -> None:
    with pytest.raises(TypeError, match="merge the adapter folder of one"):
        joint.merge()
    with pytest.raises(TypeError, match="give the same members"):
        ParallelSettings.from_delta("somewhere")
