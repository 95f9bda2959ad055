"""Every method on tags and on numbers: it trains and merges, or it is refused before data with the reason."""

from typing import Any

import pytest
import torch
from lightning import seed_everything

from commands.methods.cell import check_step, select
from lightning_modules import TASKS
from lightning_modules.batch import Batch
from methods import METHODS, compose
from tests.conftest import BACKBONE, STACK, TINY, TINY_OPTIONS, perturb

OPTIONS = TINY_OPTIONS | {"gps": {"gps_loss": "ce"}}
REFUSED = {
    "sct": "SCT averages scores over (the )?classes",
    "knn": "KNN compares features of images of known classes",
    "nearest_mean": "NearestMean compares features of images of known classes",
}
TARGETS = {"multi_label": torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]), "regression": torch.randn(2, 3)}
OUTPUTS = {"multi_label": "num_classes", "regression": "num_targets"}


def build(method: str, task: str, **options: Any) -> Any:
    """A method on a tiny network with random weights and three outputs, not adapted yet."""
    names = STACK[method].split("+")
    own: dict[str, Any] = {option: value for name in names for option, value in OPTIONS.get(name, {}).items()}
    seed_everything(0, verbose=False)
    cls = compose(*(METHODS[name] for name in names), task=TASKS[task])
    plain = {"backbone": BACKBONE, "backbone_args": TINY, "pretrained": False, OUTPUTS[task]: 3}
    model: Any = cls(**plain | own | options)
    model.budget_unit = 1e4  # of SPT, whose budgets are millions of parameters otherwise
    return model


@pytest.mark.parametrize("task", TARGETS)
@pytest.mark.parametrize("method", [name for name in METHODS if name not in REFUSED])
def test_method(method: str, task: str) -> None:
    model = build(method, task)
    batch = Batch.of(torch.randn(2, 3, 32, 32), TARGETS[task])
    model.adapt_before_data()
    select(model, batch)
    check_step(model, batch)
    if not model.mergeable:
        return
    perturb(model, 0.01)
    model.eval()
    with torch.no_grad():
        merged = model.outputs_with(model.merge(), batch.inputs)
        torch.testing.assert_close(merged, model(batch.inputs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("task", TARGETS)
@pytest.mark.parametrize("method", REFUSED)
def test_refused(method: str, task: str) -> None:
    with pytest.raises(ValueError, match=rf"{REFUSED[method]}.*: use "):
        build(method, task).adapt_before_data()


@pytest.mark.parametrize("task", TARGETS)
def test_contrastive_scores(task: str) -> None:
    with pytest.raises(ValueError, match=r"gps_loss=supcon compares images by their classes, and .* have none"):
        build("gps", task, gps_loss="supcon")
