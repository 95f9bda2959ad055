"""Methods that choose from data."""

from collections.abc import Callable
from typing import Any

import torch

from callbacks.scoring.score_before_fit import ScoreBeforeFit
from callbacks.scoring.scorers import SignedGradients
from methods import PEFTMethod
from methods.core.selective import Selective

Build = Callable[..., PEFTMethod]


def test_waits_for_its_selection(build: Build) -> None:
    model: Any = build("gps")
    assert isinstance(model, Selective)
    model.configure_model()
    assert not model.adapted
    model.selection = model.select(
        {name: torch.rand(model.backbone.get_parameter(name).shape) for name in model.score_targets()}
    )
    model.configure_model()
    assert model.adapted


def test_scorer_and_rows(build: Build) -> None:
    model: Any = build("gps")
    scorer = model.build_scorer()
    assert isinstance(scorer, SignedGradients)
    assert scorer.targets == model.score_targets()
    scores = {name: -torch.ones(model.backbone.get_parameter(name).shape) for name in model.score_targets()}
    model.selection = {name: torch.tensor([0, 3]) for name in model.score_targets()}
    rows = model.score_rows(scores)
    assert [row.name for row in rows] == model.score_targets()
    assert all(row.selected == 2 and (row.values == 1).all() for row in rows)


def test_brings_its_callback(build: Build, trainer: Any) -> None:
    """Once: not where the command line has given one, and not where the options need no scores."""
    model: Any = build("gps")
    model.trainer = trainer()
    assert sum(isinstance(callback, ScoreBeforeFit) for callback in model.configure_callbacks()) == 1
    model.trainer = trainer(callbacks=[ScoreBeforeFit()])
    assert not any(isinstance(callback, ScoreBeforeFit) for callback in model.configure_callbacks())
    free: Any = build("child_tuning", child_variant="F")
    free.trainer = trainer()
    assert not any(isinstance(callback, ScoreBeforeFit) for callback in free.configure_callbacks())
    free.configure_model()
    assert free.adapted
