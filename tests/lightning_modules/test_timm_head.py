"""Tasks with the classifier of a timm network; each of them has its own tests."""

import pytest
import torch

from lightning_modules import TASKS
from lightning_modules.batch import Batch
from lightning_modules.timm_head import TimmHead
from tests.lightning_modules.test_task_contract import model

NAMES = [name for name, task in TASKS.items() if issubclass(task, TimmHead) and task.unit == "image"]


def test_which_tasks_have_it() -> None:
    assert NAMES == ["classification", "multi_label", "regression"]
    assert "timm_head" not in TASKS


@pytest.mark.parametrize("name", NAMES)
def test_outputs(name: str) -> None:
    """One output for each class, tag or number, also with features of another width."""
    task = model(name)
    assert isinstance(task, TimmHead)
    images = task.example_images()
    assert task(images).shape == (1, task.outputs)
    assert task.output_names == []
    task.resize_head(7)
    assert task.predict_from(torch.zeros(1, 17, 7)).shape == (1, task.outputs)


def test_wrong_rate() -> None:
    with pytest.raises(ValueError, match="drop_path=1: expected a probability"):
        TASKS["classification"](drop_path=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", NAMES)
def test_mirror_images(name: str) -> None:
    task = model(name).eval()
    images = torch.randn(2, *task.example_images().shape[1:])
    batch = Batch.of(images, torch.zeros(2))
    plain, mirrored = task.infer(batch), task(images.flip(3))
    assert torch.equal(plain, task(images))
    task.eval_flip = True
    torch.testing.assert_close(task.infer(batch), (plain + mirrored) / 2)
    assert not torch.allclose(plain, mirrored)
