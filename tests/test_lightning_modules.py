"""Tasks found by import."""

from abc import abstractmethod
from typing import Any

import pytest
from torch import Tensor
from torchmetrics import MetricCollection

from lightning_modules import TASKS, check_complete
from lightning_modules.classification import Classification


def test_tasks() -> None:
    """Every task has the name of its file, and all verbs."""
    assert TASKS["classification"] is Classification
    for name, task in TASKS.items():
        assert task.__module__ == f"lightning_modules.{name}"
        check_complete(task)


def test_missing_verbs() -> None:
    """A task that lacks a verb is refused with its name, and cannot be built."""

    class Half(Classification):
        @abstractmethod
        def losses(self, outputs: Any, targets: Any) -> dict[str, Tensor]: ...

        @abstractmethod
        def metrics(self) -> MetricCollection: ...

    with pytest.raises(TypeError, match=r"Half is no complete task: it lacks losses, metrics$"):
        check_complete(Half)
    check_complete(Classification)
