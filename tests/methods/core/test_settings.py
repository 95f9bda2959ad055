"""Options of the members of a run."""

from typing import Any

import pytest

from methods.core.settings import expand, options_of


def test_list_of_settings() -> None:
    found = expand([{"name": "a", "lr": 0.1, "seed": 3}, {"lr": 0.2, "weight_decay": 0.0}])
    assert found == {"a": {"lr": 0.1, "seed": 3}, "lr=0.2_weight_decay=0.0": {"lr": 0.2, "weight_decay": 0.0}}
    assert options_of(found["a"]) == {"lr": 0.1}


def test_grid_of_settings() -> None:
    assert list(expand({"lr": [0.1, 0.2], "weight_decay": [0.0, 1.0]})) == [
        "lr=0.1_weight_decay=0.0",
        "lr=0.1_weight_decay=1.0",
        "lr=0.2_weight_decay=0.0",
        "lr=0.2_weight_decay=1.0",
    ]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "at least one member"),
        ({"lr": 0.1}, "a grid holds lists of values, and lr is 0.1"),
        ([{"lr": 0.1}, {"lr": 0.1}], "'lr=0.1' is empty, given twice or 'best'"),
        ([{"name": "best", "lr": 0.1}], "'best' is empty, given twice or 'best'"),
        ([{}], "'' is empty, given twice or 'best'"),
    ],
)
def test_refused(members: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expand(members)
