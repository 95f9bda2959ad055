"""The adapter folder that a fit leaves."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.delta_export import DeltaExport
from checkpoints.delta import read_adapter, read_checkpoint
from datamodules import ImageDataset
from methods import PEFTMethod
from tests.conftest import checkpoint_of

Build = Callable[..., PEFTMethod]
Data = Callable[..., ImageDataset]
MakeTrainer = Callable[..., Trainer]


def test_adapter_is_the_best_checkpoint(build: Build, data: Data, trainer: MakeTrainer, tmp_path: Path) -> None:
    """Of three epochs, the one that the monitored metric prefers; not the last one."""
    best = ModelCheckpoint(tmp_path / "checkpoints", monitor="val/loss", mode="max", save_top_k=-1, filename="{epoch}")
    run = trainer(callbacks=[best, DeltaExport()], max_epochs=3, enable_checkpointing=True)
    run.fit(build("ssf", lr=0.01), datamodule=data())
    assert "epoch=0" in best.best_model_path, "the loss falls, and mode=max prefers the first epoch"
    expected, found = read_checkpoint(best.best_model_path), read_adapter(tmp_path / "adapter")
    assert found["state_dict"].keys() == expected["state_dict"].keys()
    assert all(torch.equal(tensor, found["state_dict"][name]) for name, tensor in expected["state_dict"].items())
    assert found["hyper_parameters"] == expected["hyper_parameters"]
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        loaded = PEFTMethod.from_delta(best.best_model_path)
        assert torch.equal(PEFTMethod.from_delta(tmp_path / "adapter")(x), loaded(x))


def test_no_checkpoint_no_adapter(build: Build, data: Data, trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer(callbacks=[DeltaExport()], max_steps=1).fit(build("ssf"), datamodule=data())
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("change", "written"),
    [({}, True), ({"interrupted": True}, False), ({"is_global_zero": False}, False)],
    ids=["finished", "interrupted", "another rank"],
)
def test_a_fit_that_ends_well_writes_once(
    change: dict[str, Any], written: bool, build: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model: Any = build("ssf")
    model.configure_model()
    checkpoint = checkpoint_of(model)
    checkpoint["hyper_parameters"] = dict(model.hparams)
    written_folders: list[Path] = []
    monkeypatch.setattr("callbacks.delta_export.read_checkpoint", lambda path: checkpoint)
    monkeypatch.setattr("callbacks.delta_export.write_adapter", lambda folder, _: written_folders.append(folder))
    state = {"log_dir": tmp_path, "is_global_zero": True, "interrupted": False, "loggers": []}
    state["checkpoint_callback"] = SimpleNamespace(best_model_path="best.ckpt")
    run: Any = SimpleNamespace(**state | change)
    DeltaExport().on_fit_end(run, model)
    assert written_folders == [tmp_path / "adapter"] * written
