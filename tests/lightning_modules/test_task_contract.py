"""What every task must do, by being listed: a new file in ``lightning_modules/`` is tested here without another line.

The task's own test file, ``test_<task>.py``, gives ``OPTIONS``: arguments that make a tiny model without a download. A
task without a new head, such as language modelling, names a ``METHOD`` too, because a linear probe has nothing to train
there.
"""

import copy
import importlib
from inspect import signature
from typing import Any

import pytest
import torch
from torch import nn

from lightning_modules import TASKS
from lightning_modules.batch import Batch
from lightning_modules.task import Headline, Task
from methods import METHODS, compose

every_task = pytest.mark.parametrize("name", TASKS)


def own_tests(name: str) -> Any:
    """The module of the task's own tests, with ``OPTIONS``."""
    try:
        module = importlib.import_module(f"tests.lightning_modules.test_{name}")
    except ModuleNotFoundError:
        module = None
    if not hasattr(module, "OPTIONS"):
        pytest.fail(f"write tests/lightning_modules/test_{name}.py with OPTIONS, arguments that make a tiny model")
    return module


def options(name: str) -> dict[str, Any]:
    """Arguments of a tiny model of a task."""
    return own_tests(name).OPTIONS


def model(name: str) -> Task:
    """The task with a linear probe, or with its ``METHOD``, adapted: the smallest class that can be built."""
    torch.manual_seed(0)
    method = getattr(own_tests(name), "METHOD", "linear_probe")
    built = compose(METHODS[method], task=TASKS[name])(**options(name))
    built.configure_model()
    return built


@every_task
def test_headline(name: str) -> None:
    """The metric that a task is judged by is one of its metrics, for validation and for the test."""
    task = model(name)
    assert isinstance(task.headline, Headline)
    assert task.headline.name in task.metrics()
    assert f"val/{task.headline.name}" in list(task.val_metrics.keys())
    assert f"test/{task.headline.name}" in list(task.test_metrics.keys())


@every_task
def test_links(name: str) -> None:
    """Options that the data fill in are options of the task."""
    parameters = {option for base in TASKS[name].__mro__ for option in signature(base.__init__).parameters}  # type: ignore[misc]
    assert TASKS[name].links.keys() <= parameters


@every_task
def test_heads(name: str) -> None:
    """Every head is a module of the model under its name, and trains; a task has one, or its tests name a method."""
    task = model(name)
    modules = dict(task.named_modules())
    assert bool(task.heads()) != hasattr(own_tests(name), "METHOD")
    for path, head in task.heads().items():
        assert isinstance(head, nn.Module)
        assert modules[path] is head
        assert all(parameter.requires_grad for parameter in head.parameters())
        assert task.in_head(f"{path}.weight")


@every_task
def test_example_batch(name: str) -> None:
    """One sample passes through training, evaluation and prediction."""
    task = model(name)
    batch = task.example_batch()
    assert isinstance(batch, Batch)
    assert (batch.size, batch.valid.tolist()) == (1, [True])
    terms = task.train().terms(batch)
    assert all(term.dim() == 0 and term.isfinite() for term in terms.values())
    sum(terms.values()).backward()  # type: ignore[union-attr]
    trained = list(task.heads().values()) or [task]
    assert any(p.grad is not None for head in trained for p in head.parameters())
    with torch.no_grad():
        task.eval()
        outputs = task.evaluate(batch)
        task.update(task.val_metrics, outputs, batch)
        assert task.predictions(outputs) is not None
    assert torch.as_tensor(task.val_metrics.compute()[f"val/{task.headline.name}"]).isfinite()


@every_task
def test_rows_that_even_out_the_ranks(name: str) -> None:
    """They change no metric."""
    task = model(name).eval()
    batch = task.example_batch()
    padding = batch._replace(valid=torch.zeros_like(batch.valid))
    with torch.no_grad():
        task.update(task.val_metrics, task.evaluate(batch), batch)
        alone = copy.deepcopy(task.val_metrics).compute()
        task.update(task.val_metrics, task.evaluate(padding), padding)
    both = task.val_metrics.compute()
    assert {key: float(value) for key, value in both.items()} == {key: float(value) for key, value in alone.items()}


@every_task
def test_identity(name: str) -> None:
    """Another model of the task takes it over; it is plain data."""
    first, second = model(name), model(name)
    second.adopt(first.identity())
    assert second.identity() == first.identity()
    checkpoint: dict[str, Any] = {"state_dict": first.state_dict()}
    first.on_save_checkpoint(checkpoint)
    assert checkpoint["identity"] == first.identity()
    assert isinstance(first.loss_key(), str)


@every_task
def test_build(name: str) -> None:
    """Building anew gives a plain backbone without what a method has added."""
    task = compose(METHODS["ssf"], task=TASKS[name])(**options(name))
    plain = set(task.backbone.state_dict())
    task.configure_model()
    assert set(task.backbone.state_dict()) > plain
    task.build()
    assert set(task.backbone.state_dict()) == plain
