"""What every model that chooses from data has in common."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from callbacks.scoring.scorable import Scorable
from methods import METHODS, PEFTMethod
from tests.support.facts import FACTS

SCORED = [name for name, m in METHODS.items() if issubclass(m, Scorable) and hasattr(FACTS.get(name), "scores")]


@pytest.mark.parametrize("method", SCORED)
def test_selection_is_a_function_of_the_scores(method: str, build: Callable[..., PEFTMethod]) -> None:
    model: Any = build(method)
    scores = FACTS[method].scores(model)
    before = {name: tensor.clone() for name, tensor in scores.items()}
    first, second = model.select(scores), model.select(dict(reversed(scores.items())))
    assert first.keys() == second.keys()
    assert all(torch.equal(indices, second[name]) for name, indices in first.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in scores.items()), "scores stay as they are"
    assert model.selection is None, "select only returns"


@pytest.mark.parametrize("method", SCORED)
def test_rows_of_the_report_fit_the_scores(method: str, build: Callable[..., PEFTMethod]) -> None:
    model: Any = build(method)
    scores = FACTS[method].scores(model)
    model.selection = model.select(scores)
    rows = model.score_rows(scores)
    assert rows
    assert all((row.values >= 0).all() for row in rows)
    assert any(row.selected for row in rows)
    assert all(row.module or row.selected <= row.values.numel() for row in rows)


def test_the_budget_is_no_part_of_the_key(build: Any, trainer: Any, data: Any) -> None:
    """Otherwise scores are computed again for each budget."""
    keys = []
    for options in ({"gps_k": 1}, {"gps_k": 3}, {"gps_loss": "ce"}, {"gps_loss": "ce", "label_smoothing": 0.1}):
        model = build("gps", **options)
        model.trainer = trainer()
        model.trainer.datamodule = data()
        keys.append(model.score_key())
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_a_method_that_prunes_nothing(build: Any) -> None:
    model = build("gps")
    assert not model.prunable
    with pytest.raises(TypeError, match="prunes nothing"):
        model.rewind({})


def test_verbs_that_a_method_must_have() -> None:
    assert {"build_scorer", "select", "score_rows"} <= Scorable.__abstractmethods__
    assert set(SCORED) >= {"gps", "sct", "spt"}
