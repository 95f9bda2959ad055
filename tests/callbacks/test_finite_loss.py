"""A bad loss stops the fit before it reaches a weight."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from callbacks.finite_loss import StopOnNonFiniteLoss
from datamodules import ImageDataset
from lightning_modules.task import total
from methods import PEFTMethod
from tests.conftest import build_tiny, quiet_trainer
from tests.support.ranks import TwoRanks

Build = Callable[..., PEFTMethod]
Data = Callable[..., ImageDataset]
MakeTrainer = Callable[..., Trainer]


class Snapshots(Callback):
    """The trained weights before every batch."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.weights.append({name: tensor.clone() for name, tensor in pl_module.delta_state_dict().items()})


def spoil(model: Any, bad: float, *calls: int) -> None:
    """Let the loss be ``bad`` at these calls, counted from 0."""
    plain, count = model.terms, iter(range(1000))
    model.terms = lambda batch: {"loss": total(plain(batch)) * (bad if next(count) in calls else 1.0)}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_stops_before_the_update(bad: float, build: Build, data: Data, trainer: MakeTrainer, tmp_path: Path) -> None:
    model = build("ssf")
    spoil(model, bad, 9)
    snapshots = Snapshots()
    keep = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1)
    run = trainer(max_epochs=3, enable_checkpointing=True, callbacks=[StopOnNonFiniteLoss(), snapshots, keep])
    message = r"train/loss is NaN or infinite at step 9 \(epoch 1\): stopped before the update\. .*step=6\.ckpt"
    with pytest.raises(FloatingPointError, match=message):
        run.fit(model, datamodule=data())
    assert run.global_step == 9
    now = model.delta_state_dict()
    before = snapshots.weights[9]  # taken after nine updates
    assert all(torch.equal(now[name], tensor) for name, tensor in before.items())
    assert not all(torch.equal(now[name], tensor) for name, tensor in snapshots.weights[8].items())

    resumed = trainer(max_epochs=3, enable_checkpointing=True, callbacks=[StopOnNonFiniteLoss(), keep])
    resumed.fit(build("ssf"), datamodule=data(), ckpt_path=tmp_path / "step=6.ckpt")
    assert resumed.global_step == 18


def test_first_step_without_a_checkpoint(build: Build, data: Data, trainer: MakeTrainer) -> None:
    model = build("ssf")
    spoil(model, float("nan"), 0)
    with pytest.raises(FloatingPointError, match=r"at step 0 \(epoch 0\).*Last good checkpoint: none yet.*--model\.lr"):
        trainer(callbacks=[StopOnNonFiniteLoss()]).fit(model, datamodule=data())


def test_any_batch_of_an_accumulated_step(build: Build, data: Data, trainer: MakeTrainer) -> None:
    model = build("ssf")
    spoil(model, float("nan"), 4)  # the second of the three batches of step 1
    with pytest.raises(FloatingPointError, match="at step 1"):
        trainer(callbacks=[StopOnNonFiniteLoss()], accumulate_grad_batches=3).fit(model, datamodule=data())


def test_the_method_s_own_term_counts(build: Build, data: Data, trainer: MakeTrainer) -> None:
    model: Any = build("ssf")
    plain = model.losses
    model.losses = lambda outputs, targets: plain(outputs, targets) | {"own": torch.tensor(float("nan"))}
    with pytest.raises(FloatingPointError, match="at step 0"):
        trainer(callbacks=[StopOnNonFiniteLoss()]).fit(model, datamodule=data())


def test_finite_losses_pass(build: Build, data: Data, trainer: MakeTrainer) -> None:
    results = []
    for callbacks in ([StopOnNonFiniteLoss()], []):
        model = build("ssf")
        trainer(callbacks=callbacks).fit(model, datamodule=data())
        results.append(model.delta_state_dict())
    assert all(torch.equal(results[0][name], tensor) for name, tensor in results[1].items())


def fit_with_a_bad_rank(rank: int, weights: Path, images: Path, folder: Path) -> tuple[str, bool]:
    """What stops a fit whose loss becomes NaN on rank 1 alone, and whether the weights are finite then."""
    model = build_tiny(weights, "ssf")
    if rank == 1:
        spoil(model, float("nan"), 2)
    run = quiet_trainer(folder, devices=2, strategy="ddp", callbacks=[StopOnNonFiniteLoss()])
    try:
        run.fit(model, datamodule=ImageDataset(root=str(images), batch_size=4, resize="direct"))
    except FloatingPointError as error:
        return str(error), all(bool(tensor.isfinite().all()) for tensor in model.delta_state_dict().values())
    return "", False


def test_all_ranks_stop_where_one_must(two_ranks: TwoRanks, weights: Path, images: Path, tmp_path: Path) -> None:
    for message, finite in two_ranks(fit_with_a_bad_rank, weights, images, tmp_path):
        assert "train/loss is NaN or infinite at step 2" in message
        assert finite
