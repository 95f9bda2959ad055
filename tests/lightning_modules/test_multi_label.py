"""Multi-label classification: losses and outputs."""

from typing import Any

import pytest
import torch

from lightning_modules.multi_label import MultiLabel
from methods import METHODS, compose
from tests.conftest import BACKBONE, TINY

OPTIONS: dict[str, Any] = {"backbone": BACKBONE, "backbone_args": TINY, "pretrained": False, "num_classes": 3}
LOGITS, TAGS = torch.tensor([[1.0, -2.0, -4.0]]), torch.tensor([[1.0, 0.0, 0.0]])


def model(**options: Any) -> Any:
    return compose(METHODS["linear_probe"], task=MultiLabel)(**OPTIONS | options)


def test_binary_cross_entropy() -> None:
    task = model()
    shares = LOGITS.sigmoid()
    by_hand = -(TAGS * shares.log() + (1 - TAGS) * (1 - shares).log()).mean()
    torch.testing.assert_close(task.losses(LOGITS, TAGS)["task_loss"], by_hand)
    torch.testing.assert_close(task.predictions(LOGITS), shares)


def test_asymmetric_loss() -> None:
    """-(1 - p) log p for a tag of the image, -q^4 log(1 - q) for another, q = max(p - 0.05, 0)."""
    task = model(loss="asymmetric")
    shares = LOGITS.sigmoid()[0]
    q = (shares - 0.05).clamp(min=0)
    by_hand = -((1 - shares[0]) * shares[0].log() + (q[1:] ** 4 * (1 - q[1:]).log()).sum()) / 3
    torch.testing.assert_close(task.losses(LOGITS, TAGS)["task_loss"], by_hand)
    assert q[2] == 0
    assert len({model().loss_key(), task.loss_key(), model(loss="asymmetric", gamma_negative=2.0).loss_key()}) == 3


def test_asymmetric_loss_without_powers_is_the_cross_entropy() -> None:
    task = model(loss="asymmetric", gamma_positive=0.0, gamma_negative=0.0, probability_margin=0.0)
    torch.testing.assert_close(task.losses(LOGITS, TAGS), model().losses(LOGITS, TAGS))


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="num_classes=0: expected at least 1 tag"):
        model(num_classes=0)
    with pytest.raises(ValueError, match=r"probability_margin=1\.0: expected powers of at least 0"):
        model(probability_margin=1.0)
