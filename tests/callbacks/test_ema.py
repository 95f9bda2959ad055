"""Exponential moving average of what trains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.ema import EMA
from datamodules import ImageDataset
from methods import PEFTMethod

Make = Callable[..., Any]


class Record(Callback):
    """The trained values after every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.steps.append({n: p.detach().clone() for n, p in EMA.trained(pl_module).items()})

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.on_train_start(trainer, pl_module)


def test_average_is_the_formula_and_is_what_is_saved(
    build: Callable[..., PEFTMethod], data: Callable[..., ImageDataset], trainer: Make, tmp_path: Path
) -> None:
    record, model = Record(), build("ssf")
    keep = ModelCheckpoint(tmp_path, filename="last", save_top_k=1)
    trainer(max_epochs=2, callbacks=[record, EMA(0.7), keep], enable_checkpointing=True).fit(model, datamodule=data())
    average = record.steps[0]
    for values in record.steps[1:]:
        average = {name: 0.7 * average[name] + 0.3 * value for name, value in values.items()}
    saved = torch.load(keep.best_model_path, weights_only=True)
    for name, value in average.items():
        torch.testing.assert_close(saved["state_dict"][name], value)
        assert torch.equal(saved["raw"][name], record.steps[-1][name])
        assert torch.equal(model.get_parameter(name), saved["state_dict"][name])  # what was reported


def test_resume_goes_on_from_the_raw_values(
    build: Callable[..., PEFTMethod], data: Callable[..., ImageDataset], trainer: Make, tmp_path: Path
) -> None:
    def fit(folder: str, ckpt_path: Path | None = None) -> dict[str, Any]:
        keep = ModelCheckpoint(tmp_path / folder, filename="{epoch}", save_top_k=-1)
        run = trainer(max_epochs=3, callbacks=[EMA(0.7), keep], enable_checkpointing=True)
        run.fit(build("ssf"), datamodule=data(), ckpt_path=ckpt_path)
        return torch.load(tmp_path / folder / "epoch=2.ckpt", weights_only=True)

    whole, resumed = fit("whole"), fit("resumed", tmp_path / "whole/epoch=0.ckpt")
    for part in ("state_dict", "raw"):
        assert all(torch.equal(tensor, resumed[part][name]) for name, tensor in whole[part].items())


def test_raw_values_of_other_parameters(
    build: Callable[..., PEFTMethod], data: Callable[..., ImageDataset], trainer: Make
) -> None:
    average = EMA(0.7)
    average.raw = {"backbone.head.bias": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"its 'raw' and the trained parameters .* differ in backbone\.blocks\.0"):
        trainer(callbacks=[average]).fit(build("ssf"), datamodule=data())


def test_no_average_without_a_decay(
    build: Callable[..., PEFTMethod], data: Callable[..., ImageDataset], trainer: Make, tmp_path: Path
) -> None:
    keep, model = ModelCheckpoint(tmp_path, filename="last"), build("ssf")
    trainer(callbacks=[EMA(), keep], enable_checkpointing=True).fit(model, datamodule=data())
    plain = build("ssf")
    trainer().fit(plain, datamodule=data())
    expected = dict(plain.named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in model.named_parameters())
    assert not {"raw", "ema_decay"} & torch.load(keep.best_model_path, weights_only=True).keys()


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_decay_outside_its_range(decay: float) -> None:
    with pytest.raises(ValueError, match=rf"ema\.decay={decay}: expected a decay of at least 0 and below 1"):
        EMA(decay)
