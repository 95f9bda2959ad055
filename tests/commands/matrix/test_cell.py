"""A cell finds what is wrong with a method: each check of it fails on a method that breaks it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from backbones.inject import Backbone
from commands.matrix import cell
from commands.matrix.families import FAMILIES, network
from methods import METHODS, PEFTMethod
from methods.bitfit import BitFit

VIT = FAMILIES["vision_transformer"]


@pytest.fixture
def outcome(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[PEFTMethod]], cell.Outcome]:
    """Outcome of a class on the small ViT."""

    def of(method: type[PEFTMethod]) -> cell.Outcome:
        monkeypatch.setitem(METHODS, "broken", method)
        return cell.outcome("broken", VIT, network("vision_transformer"))

    return of


class Unused(BitFit):
    """Trains a parameter that no forward pass reads."""

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        backbone.unused = nn.Linear(2, 2)


class Moving(BitFit):
    """Changes a frozen weight in the forward pass."""

    def features(self, inputs: Any) -> Any:
        with torch.no_grad():
            self.backbone.blocks[0].mlp.fc1.weight.add_(1.0)
        return super().features(inputs)


class Wrong(BitFit):
    """Merges into another function."""

    def merge_into(self, backbone: Backbone) -> None:
        backbone.blocks[0].mlp.fc2.weight.mul_(2.0)
        super().merge_into(backbone)


class Losing(BitFit):
    """Merges without a weight of the plain model."""

    def merge_into(self, backbone: Backbone) -> None:
        backbone.blocks[0].mlp.fc2.bias = None
        super().merge_into(backbone)


class Additional(BitFit):
    """Merges with a weight that the plain model lacks."""

    def merge_into(self, backbone: Backbone) -> None:
        backbone.blocks[0].additional = nn.Parameter(torch.zeros(2))
        super().merge_into(backbone)


class Refusing(BitFit):
    """Refuses every backbone."""

    def adapt(self, backbone: Backbone) -> None:
        raise ValueError("this backbone has no wings: use a bird")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Unused, "no gradient: backbone.unused.weight"),
        (Moving, "frozen, but changed: backbone.blocks.0.mlp.fc1.weight"),
        (Wrong, "merged outputs differ by"),
        (Losing, "the merged model lacks blocks.0.mlp.fc2.bias"),
    ],
)
def test_broken_methods(method: type[PEFTMethod], message: str, outcome: Callable[..., cell.Outcome]) -> None:
    with pytest.raises(AssertionError, match=message):
        outcome(method)


def test_outcomes(outcome: Callable[..., cell.Outcome]) -> None:
    assert outcome(BitFit) == cell.Outcome("merges")
    assert outcome(Additional) == cell.Outcome("trains", "no weight of the plain model can take blocks.0.additional")
    assert outcome(Refusing) == cell.Outcome("refused", "this backbone has no wings: use a bird")
