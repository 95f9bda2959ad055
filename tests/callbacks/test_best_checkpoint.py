"""The best epoch of a fit that was interrupted is that of one that was not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.best_checkpoint import BestCheckpoint
from datamodules import ImageDataset
from methods import PEFTMethod
from tests.conftest import quiet_trainer

OPTIONS: dict[str, Any] = {"monitor": "val/loss", "mode": "min", "filename": "best", "enable_version_counter": False}


def fit(
    build: Callable[..., PEFTMethod], data: Callable[..., ImageDataset], folder: Path, epochs: int, path: Path | None
) -> tuple[Trainer, BestCheckpoint]:
    """A fit whose validation loss grows: its first epoch stays the best one."""
    best = BestCheckpoint(folder, **OPTIONS)
    last = ModelCheckpoint(folder, "last", enable_version_counter=False)
    trainer = quiet_trainer(folder, max_epochs=epochs, callbacks=[best, last], enable_checkpointing=True)
    trainer.fit(build("linear_probe", lr=50.0, warmup_epochs=0), datamodule=data(), ckpt_path=path)
    return trainer, best


def test_the_best_epoch_before_counts(
    build: Callable[..., PEFTMethod], data: Callable[..., ImageDataset], tmp_path: Path
) -> None:
    _, whole = fit(build, data, tmp_path / "whole", 1, None)
    (_, resumed) = fit(build, data, tmp_path / "resumed", 3, tmp_path / "whole/last.ckpt")
    assert Path(resumed.best_model_path).parent == tmp_path / "resumed"
    epoch = torch.load(resumed.best_model_path, weights_only=True)["epoch"]
    assert resumed.best_model_score is not None
    assert whole.best_model_score is not None
    assert resumed.best_model_score <= whole.best_model_score
    _, straight = fit(build, data, tmp_path / "straight", 3, None)
    assert epoch == torch.load(straight.best_model_path, weights_only=True)["epoch"]
    assert resumed.best_model_score == straight.best_model_score
    assert (tmp_path / "whole/best.ckpt").exists()


def test_a_best_epoch_that_is_gone(tmp_path: Path) -> None:
    best = BestCheckpoint(tmp_path, **OPTIONS)
    state = best.state_dict() | {"best_model_path": str(tmp_path / "gone.ckpt"), "dirpath": "elsewhere"}
    with pytest.warns(UserWarning, match="dirpath has changed"):
        best.load_state_dict(state)
    assert best.best_model_score is None


@pytest.mark.parametrize("name", ["best.ckpt", "x" * 5000])
def test_a_best_epoch_that_is_no_checkpoint(name: str, tmp_path: Path) -> None:
    (tmp_path / "best.ckpt").write_bytes(b"text")
    best = BestCheckpoint(tmp_path / "own", **OPTIONS)
    state = best.state_dict() | {"best_model_path": str(tmp_path / name), "dirpath": str(best.dirpath)}
    if name == "best.ckpt":
        with pytest.raises(ValueError, match=r"best_model_path='.*best\.ckpt' .* is empty, incomplete or unsafe"):
            best.load_state_dict(state)
    else:
        best.load_state_dict(state)
    assert not (tmp_path / "own").exists()


def test_state_of_older_checkpoints() -> None:
    assert BestCheckpoint(**OPTIONS).state_key == ModelCheckpoint(**OPTIONS).state_key
