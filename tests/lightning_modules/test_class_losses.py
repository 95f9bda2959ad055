"""Weights of classes and the focal loss."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from lightning_modules.batch import Batch
from lightning_modules.class_losses import balanced_weights, check_weights, class_counts, focal_loss
from lightning_modules.classification import Classification
from methods import METHODS, compose
from tests.conftest import BACKBONE, TINY

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.5, 0.0], [0.3, -0.2, 0.1]])
LABELS = torch.tensor([0, 2, 1])
WEIGHTS = torch.tensor([1.0, 2.0, 4.0])


def data(labels: list[int]) -> Any:
    """A datamodule after its setup."""
    samples = SimpleNamespace(labels=torch.tensor(labels))
    return SimpleNamespace(splits={"train": SimpleNamespace(samples=samples)}, class_names=["a", "b", "c"])


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_focal_loss_without_power_is_the_cross_entropy(weights: torch.Tensor | None, smoothing: float) -> None:
    soft = F.one_hot(LABELS, 3).float() * 0.8 + 0.2 / 3
    for targets, share in ((LABELS, smoothing), (soft, 0.0)):
        expected = F.cross_entropy(LOGITS, targets, weights, label_smoothing=share)
        torch.testing.assert_close(focal_loss(LOGITS, targets, 0.0, weights, share), expected)


def test_focal_loss_by_hand() -> None:
    shares = LOGITS.softmax(1)[range(3), LABELS]
    losses = -((1 - shares) ** 2) * shares.log()
    torch.testing.assert_close(focal_loss(LOGITS, LABELS, 2.0, None, 0.0), losses.mean())
    of_labels = WEIGHTS[LABELS]
    expected = (of_labels * losses).sum() / of_labels.sum()
    torch.testing.assert_close(focal_loss(LOGITS, LABELS, 2.0, WEIGHTS, 0.0), expected)


def test_balanced_weights() -> None:
    """N / (K n): every class has the same weight in all; the mean over images is 1."""
    weights = balanced_weights(data([0, 0, 0, 0, 1, 1, 1, 2]), 3)
    torch.testing.assert_close(weights, torch.tensor([8 / 12, 8 / 9, 8 / 3]))
    with pytest.raises(ValueError, match="class_weights=balanced: 1 of 3 classes have no training image, first 'b'"):
        balanced_weights(data([0, 2]), 3)
    with pytest.raises(ValueError, match="class_weights=balanced: no training images whose classes can be counted"):
        balanced_weights(None, 3)
    with pytest.raises(ValueError, match="first '1'"):
        class_counts(torch.tensor([0, 2]), 3, [], "option")


def test_weights_of_a_model() -> None:
    def model(**options: Any) -> Any:
        tiny = {"backbone": BACKBONE, "backbone_args": TINY, "pretrained": False, "num_classes": 3}
        return compose(METHODS["linear_probe"], task=Classification)(**tiny, **options)

    given = model(class_weights=[1, 2, 4])
    expected = F.cross_entropy(LOGITS, LABELS, WEIGHTS)
    torch.testing.assert_close(given.losses(LOGITS, LABELS)["task_loss"], expected)
    focal = model(loss="focal", focal_gamma=1.5)
    torch.testing.assert_close(focal.losses(LOGITS, LABELS)["task_loss"], focal_loss(LOGITS, LABELS, 1.5, None, 0.0))
    balanced = model(class_weights="balanced")
    balanced._trainer = SimpleNamespace(datamodule=data([0, 1, 2, 2]))
    weights = torch.tensor([4 / 3, 4 / 3, 2 / 3])
    expected = F.cross_entropy(LOGITS, LABELS, weights)
    torch.testing.assert_close(balanced.losses(LOGITS, LABELS)["task_loss"], expected)
    assert len({task.loss_key() for task in (given, focal, balanced, model())}) == 4
    batch = Batch.of(torch.randn(3, 3, 32, 32), LABELS)
    assert given.eval().loss(batch).isfinite()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 2.0], "class_weights has 2 weights; expected 3"),
        ([1.0, -1.0, 1.0], r"class_weights: -1\.0; expected weights of at least 0"),
        ([0.0, 0.0, 0.0], "class_weights: all are 0"),
    ],
)
def test_wrong_weights(weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_weights(weights, 3)
    check_weights("balanced", 3)
    check_weights(None, 3)
