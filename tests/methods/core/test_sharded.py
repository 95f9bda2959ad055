"""Sharded models (FSDP2): two processes give what one process gives, and the same files."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from callbacks.cost import Cost
from callbacks.ema import EMA
from callbacks.finite_loss import StopOnNonFiniteLoss
from checkpoints.delta import read_checkpoint
from checkpoints.whole import whole
from datamodules import ImageDataset
from methods import METHODS, PEFTMethod
from methods.core.parallel_settings import ParallelSettings
from methods.core.sharded import Sharded, check_strategy, shard
from tests.conftest import ROOT, STACK, build_tiny, quiet_trainer, random_tiny
from tests.support.batches import as_batch
from tests.support.ranks import TwoRanks

Build = Callable[..., PEFTMethod]
Data = Callable[..., ImageDataset]
MakeTrainer = Callable[..., Trainer]
SHARDABLE = [name for name, method in METHODS.items() if vars(method).get("shardable")]
# a large epsilon, because Adam turns gradients that are zero but for rounding into whole steps
EQUAL: dict[str, Any] = {"adam_eps": 1e-3, "weight_decay": 0.1}
OPTIONS: dict[str, dict[str, Any]] = {"adaptformer": {"adaptformer_dropout": 0.0}}  # ranks draw other zeros


def run(folder: Path, **options: Any) -> Trainer:
    callbacks = [Cost(), StopOnNonFiniteLoss(), EMA(0.5)]
    return quiet_trainer(folder, **{"limit_train_batches": 2, "callbacks": callbacks} | options)


def tiny(weights: Path, method: str, **options: Any) -> PEFTMethod:
    return build_tiny(weights, method, **EQUAL | OPTIONS.get(method, {}) | options)


def fit_and_resume(rank: int, method: str, images: Path, weights: Path, folder: Path) -> dict[str, Any]:
    """Two steps, a test, a checkpoint, and two steps more in a new run that resumes from it."""
    data = ImageDataset(root=str(images), batch_size=4, resize="direct")
    model, first = tiny(weights, method), run(folder, devices=2, strategy=Sharded())
    first.fit(model, datamodule=data)
    assert all(isinstance(p, DTensor) for p in model.parameters())
    first.save_checkpoint(folder / "two.ckpt")
    tested = first.test(model, datamodule=data, ckpt_path=folder / "two.ckpt", verbose=False)[0]
    again = run(folder, devices=2, strategy=Sharded(), max_epochs=2, gradient_clip_val=1e3)
    resumed = tiny(weights, method)
    again.fit(resumed, datamodule=data, ckpt_path=folder / "two.ckpt", weights_only=True)
    return {"test": tested, "four": whole(resumed.delta_state_dict())}


@pytest.mark.parametrize("method", SHARDABLE)
def test_two_processes_are_one(
    method: str, two_ranks: TwoRanks, images: Path, weights: Path, data: Data, tmp_path: Path
) -> None:
    ranks = two_ranks(fit_and_resume, method, images, weights, tmp_path / "sharded", limit=120)
    model, first = tiny(weights, method), run(tmp_path)
    first.fit(model, datamodule=data(batch_size=8))
    first.save_checkpoint(tmp_path / "two.ckpt")
    one, two = read_checkpoint(tmp_path / "two.ckpt"), read_checkpoint(tmp_path / "sharded/two.ckpt")
    assert one["peft"] | {"manifest": {}} == two["peft"] | {"manifest": {}}
    for part in ("state_dict", "raw", "optimizer_states"):
        torch.testing.assert_close(two[part], one[part], atol=1e-5, rtol=0)
    alone = run(tmp_path).test(PEFTMethod.from_delta(two), datamodule=data(), verbose=False)[0]
    assert ranks[0]["test"] == ranks[1]["test"] == pytest.approx(alone, abs=1e-5)
    # one process goes on from the files of two
    resumed = tiny(weights, method)
    run(tmp_path, max_epochs=2).fit(
        resumed, datamodule=data(batch_size=8), ckpt_path=tmp_path / "sharded/two.ckpt", weights_only=True
    )
    torch.testing.assert_close(ranks[0]["four"], resumed.delta_state_dict(), atol=1e-5, rtol=0)


class EvaluateFirst(Callback):
    """An evaluation before the first step, in the inference mode that Lightning has with NCCL."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with torch.inference_mode():
            pl_module.eval()(torch.zeros(1, 3, 32, 32))
        pl_module.train()


def fit_in(rank: int, precision: Any, images: Path, weights: Path, folder: Path) -> dict[str, set[torch.dtype]]:
    model = build_tiny(weights, "ssf")
    fit = quiet_trainer(
        folder, devices=2, strategy=Sharded(), precision=precision, gradient_clip_val=0.1, callbacks=[EvaluateFirst()]
    )
    fit.fit(model, datamodule=ImageDataset(root=str(images), batch_size=4, resize="direct"))
    assert all(tensor.isfinite().all() for tensor in whole(model.delta_state_dict()).values())
    return {str(kind): {p.dtype for p in model.parameters() if p.requires_grad is kind} for kind in (True, False)}


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_precisions(precision: str, two_ranks: TwoRanks, images: Path, weights: Path, tmp_path: Path) -> None:
    """Trained values stay fp32, and with them frozen ones of the same norm."""
    for rank in two_ranks(fit_in, precision, images, weights, tmp_path):
        assert rank["True"] == {torch.float32}
        assert rank["False"] == {torch.float32 if precision == "bf16-mixed" else torch.bfloat16}


FAMILIES = {
    "lora": ("test_convnext", {"lora_targets": ["conv_dw", "fc1"]}),  # a convolution reads an updated weight
    "ssf": ("test_efficientnet", {}),
    "adapter": ("test_convnext", {}),
    "bitfit": ("test_byobnet", {}),
}


def gradients(rank: int, method: str, sharded: bool) -> dict[str, Any]:
    backbone, options = FAMILIES[method]
    torch.manual_seed(0)
    model = random_tiny(method, backbone=backbone, backbone_args={}, **options)
    model.configure_model()
    model.train()
    if sharded:
        distributed.init_process_group("gloo")
        shard(model, init_device_mesh("cpu", (2,)))
    torch.manual_seed(0)
    loss = model.loss(as_batch(torch.randn(4, *model.input_config["input_size"]), torch.arange(4) % 3))
    loss.backward()
    return {"loss": loss.detach()} | {n: whole(p.grad) for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("method", FAMILIES)
def test_convolutional_networks(method: str, two_ranks: TwoRanks) -> None:
    ranks = two_ranks(gradients, method, True)
    torch.testing.assert_close(ranks[0], gradients(0, method, False), atol=1e-5, rtol=1e-4)


# refusals


@pytest.mark.parametrize("method", [name for name in STACK if name not in SHARDABLE])
def test_other_methods_are_refused(method: str, build: Build) -> None:
    name = METHODS[method].__name__
    with pytest.raises(ValueError, match=rf"{name}.* cannot be sharded; use ddp \(configs/trainer/ddp\.yaml\)"):
        Sharded().connect(build(method))


def test_members_are_refused(build: Build) -> None:
    members = ParallelSettings(build("linear_probe"), [{"name": "a"}, {"name": "b"}])
    with pytest.raises(ValueError, match="ParallelSettings cannot be sharded"):
        Sharded().connect(members)


def test_config_lists_the_methods() -> None:
    (listed,) = re.findall(r"# Methods: (.*?)\.", (ROOT / "configs/trainer/fsdp.yaml").read_text())
    assert listed.split(", ") == sorted(SHARDABLE)


@pytest.mark.parametrize("strategy", [ModelParallelStrategy(), FSDPStrategy()])
def test_strategies_of_lightning_are_refused(strategy: Any) -> None:
    """``ModelParallelStrategy`` would train each rank apart, without an error."""
    with pytest.raises(ValueError, match=rf"trainer\.strategy={type(strategy).__name__}: expected one device or ddp"):
        check_strategy(strategy)


def test_a_refused_run_reads_no_data(build: Build, trainer: MakeTrainer) -> None:
    class Unread(LightningDataModule):
        def setup(self, stage: str) -> None:
            raise AssertionError("the data are read")

    for strategy, message in ((ModelParallelStrategy(), "expected one device"), (Sharded(), "DyT cannot be sharded")):
        with pytest.raises(ValueError, match=message):
            trainer(strategy=strategy).fit(build("dyt"), datamodule=Unread())


def fit_from_other_values(rank: int, images: Path, weights: Path, folder: Path) -> str:
    model = build_tiny(weights, "lora")
    with torch.no_grad():
        model.backbone.head.bias += rank
    try:
        quiet_trainer(folder, devices=2, strategy=Sharded()).fit(
            model, datamodule=ImageDataset(root=str(images), batch_size=4)
        )
    except ValueError as error:
        return str(error)
    return "no error"


def test_ranks_with_other_values_are_refused(two_ranks: TwoRanks, images: Path, weights: Path, tmp_path: Path) -> None:
    for message in two_ranks(fit_from_other_values, images, weights, tmp_path):
        assert "the ranks have different initial values; set seed_everything" in message
