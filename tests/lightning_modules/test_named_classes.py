"""Names of classes."""

import pytest

from lightning_modules.classification import Classification
from lightning_modules.named_classes import check_classes
from tests.conftest import BACKBONE, TINY


def test_same_order() -> None:
    check_classes([], ["sky", "sea"])
    check_classes(["sky", "sea"], ["sky", "sea"])
    with pytest.raises(ValueError, match="other classes than the checkpoint: sea, sky in the data, sky, sea in the ch"):
        check_classes(["sea", "sky"], ["sky", "sea"])


def test_names_of_a_checkpoint() -> None:
    task = Classification(backbone=BACKBONE, backbone_args=TINY, pretrained=False, num_classes=2)
    task.adopt({"class_names": ["sky", "sea"]})
    assert task.identity() == {"class_names": ["sky", "sea"]}
    with pytest.raises(ValueError, match="other classes"):
        task.adopt({"class_names": ["sea", "sky"]})
