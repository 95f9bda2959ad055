"""Linear probe."""

from typing import Any

import pytest
from torch import nn

from tests.conftest import random_tiny

COUNTS = {"vit_base_patch16_224": 0}
IDENTITY: dict[str, Any] | None = {}


def test_a_backbone_without_a_classifier_is_refused() -> None:
    model = random_tiny("linear_probe")
    model.backbone.head = nn.Identity()
    with pytest.raises(ValueError, match="trains a classifier, and VisionTransformer has none"):
        model.configure_model()


def test_features_before_further_layers_are_not_kept() -> None:
    """SHViT has a BatchNorm between its pooled features and the classifier."""
    model = random_tiny("linear_probe", backbone="shvit_s1", backbone_args={})
    model.configure_model()
    with pytest.raises(ValueError, match="SHViT has no single linear classifier, whose input is kept"):
        model.frozen_layers()
