"""Values from before a first fit, and what stops a second one; tests/commands/test_prune_rewind.py runs both."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from safetensors.torch import load_file

from callbacks.scoring.rewind import Rewind, plain, tensors


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"selection": 3}', '{"selection": {"tokens": "abc"}}'])
def test_a_damaged_plan(text: str, build: Any, data: Any, trainer: Any, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ValueError, match="is no readable plan"):
        trainer(callbacks=[Rewind(plan=str(tmp_path / "plan.json"))]).fit(build("e2vpt"), datamodule=data())


def test_a_plain_loader_is_refused_before_the_first_fit(build: Any, trainer: Any) -> None:
    images = torch.utils.data.TensorDataset(torch.zeros(4, 3, 32, 32), torch.zeros(4).long())
    loader = torch.utils.data.DataLoader(images)
    with pytest.raises(ValueError, match="pass the data as a datamodule"):
        trainer(callbacks=[Rewind()]).fit(build("e2vpt"), train_dataloaders=loader, val_dataloaders=loader)


def values(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.delta_state_dict().items()}


class BeforeTheFirstStep(Callback):
    """Keeps the values that the first step starts from."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.values = values(pl_module)


def test_the_first_fit_writes_its_initial_values(build: Any, data: Any, trainer: Any, tmp_path: Path) -> None:
    before, model = BeforeTheFirstStep(), build("e2vpt")
    rewind = Rewind(initial=str(tmp_path / "initial"))
    trainer(callbacks=[rewind, before], max_steps=1).fit(model, datamodule=data())
    initial = load_file(tmp_path / "initial")
    assert initial.keys() == before.values.keys()
    assert all(torch.equal(initial[name], tensor) for name, tensor in before.values.items())
    assert not all(torch.equal(initial[name], tensor) for name, tensor in values(model).items()), "a step was made"


def test_a_resumed_fit_leaves_the_initial_values(build: Any, data: Any, trainer: Any, tmp_path: Path) -> None:
    run = trainer(max_epochs=1)
    run.fit(build("e2vpt"), datamodule=data())
    run.save_checkpoint(tmp_path / "first.ckpt")
    resumed = trainer(callbacks=[Rewind(initial=str(tmp_path / "initial"))], max_epochs=2)
    resumed.fit(build("e2vpt"), datamodule=data(), ckpt_path=tmp_path / "first.ckpt")
    assert not (tmp_path / "initial").exists()


@pytest.mark.parametrize(
    "model", [lambda build: build("ssf"), lambda build: build("e2vpt", prompt_length=0)], ids=["ssf", "no prompts"]
)
def test_models_that_cannot_be_pruned(model: Callable[[Any], Any], build: Any, data: Any, trainer: Any) -> None:
    with pytest.raises(ValueError, match="nothing of this model can be pruned and fitted once more"):
        trainer(callbacks=[Rewind()]).fit(model(build), datamodule=data())


def test_other_stages_need_nothing(build: Any, data: Any, trainer: Any) -> None:
    trainer(callbacks=[Rewind(plan="nowhere.json")]).test(build("ssf"), datamodule=data(), verbose=False)


def test_selections_as_plain_data() -> None:
    selection = {"tokens": torch.tensor([3, 1]), "segments": torch.tensor([[0, 1], [2, 3]])}
    again = tensors(plain(selection))
    assert all(torch.equal(again[name], indices) for name, indices in selection.items())
