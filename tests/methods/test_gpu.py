"""Faults that only a GPU shows; ``--gpu-tests-on cpu`` tries the tests themselves without one.

``test_pretend_gpu.py`` looks for the same faults on a pretend GPU, which has no kernels, streams and clocks.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from torch import Tensor, distributed

from callbacks.cost import Cost
from callbacks.finite_loss import StopOnNonFiniteLoss
from checkpoints.delta import write_adapter
from datamodules import ImageDataset
from methods import METHODS, PEFTMethod
from methods.core.sharded import Sharded
from tests.conftest import STACK, checkpoint_of, perturb, quiet_trainer
from tests.support.batches import as_batch

pytestmark = pytest.mark.gpu
Build = Callable[..., PEFTMethod]
Data = Callable[..., ImageDataset]
OPTIONS: dict[str, dict[str, Any]] = {"diff_pruning": {"diff_burn_in": 0.2}}  # it looks at all gates in one early step
COMPILED: dict[str, dict[str, Any]] = {
    "lora": {"lora_dropout": 0.1},
    "qlora": {},
    "dora": {"lora_dropout": 0.1},
    "ssf": {},
    "gps": {},
    "spt": {},
}


@pytest.fixture
def device(pytestconfig: pytest.Config) -> torch.device:
    found = torch.device(pytestconfig.getoption("--gpu-tests-on"))
    if found.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    return found


def run_on(device: torch.device, folder: Path, **options: Any) -> Trainer:
    callbacks = [Cost(), StopOnNonFiniteLoss(), *options.pop("callbacks", [])]
    kind = "gpu" if device.type == "cuda" else device.type
    return quiet_trainer(folder, **{"accelerator": kind, "max_steps": 4, "callbacks": callbacks} | options)


class NoWaits(Callback):
    """Makes torch raise where the host waits for the GPU, in training steps from the third on.

    Args:
        evaluation: Whether batches of an evaluation must not wait either.
    """

    def __init__(self, evaluation: bool) -> None:
        self.evaluation, self.steps = evaluation, 0

    def mode(self, name: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode(name)

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step >= 2:
            self.mode("error")
            self.steps += 1

    def on_train_batch_end(self, *args: Any) -> None:
        self.mode("default")

    def on_validation_batch_start(self, *args: Any) -> None:
        if self.evaluation:
            self.mode("error")

    on_validation_batch_end = on_exception = on_train_batch_end


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("method", STACK)
def test_steps_without_waits(
    method: str, precision: Any, device: torch.device, build: Build, data: Data, tmp_path: Path
) -> None:
    """The end of the fit included, where DyT draws on the CPU, and the pruning of tensors without a kept entry."""
    seen = NoWaits(evaluation=method != "dyt")  # it waits for the number of kept tokens
    run = run_on(device, tmp_path, precision=precision, callbacks=[seen])
    run.fit(build(method, **OPTIONS.get(method, {})), datamodule=data())
    assert seen.steps == 2


@pytest.mark.parametrize("method", ["diff_pruning", "sara", "child_tuning", "sam_second_order"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_clipping(method: str, precision: Any, device: torch.device, build: Build, data: Data, tmp_path: Path) -> None:
    if precision == "16-mixed" and device.type == "cpu":
        pytest.skip("Lightning has no fp16 autocast on a CPU")
    run = run_on(device, tmp_path, precision=precision, gradient_clip_val=1.0)
    run.fit(build(method), datamodule=data())
    assert run.global_step == 4


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
@pytest.mark.parametrize("method", ["lora", "ssf", "gps", "last", "hst", "dyt", "full"])
def test_other_precisions(
    method: str, precision: Any, device: torch.device, build: Build, data: Data, tmp_path: Path
) -> None:
    model = build(method)
    run = run_on(device, tmp_path, precision=precision)
    run.fit(model, datamodule=data())
    trained = torch.float64 if precision == "64-true" else torch.float32
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {trained}
    assert all(bool(value.isfinite()) for value in run.callback_metrics.values())


@pytest.mark.parametrize("method", METHODS)
def test_files_and_merging(method: str, device: torch.device, build: Build, data: Data, tmp_path: Path) -> None:
    """A model on the GPU gives what its file gives on the CPU, and what the merged model gives."""
    model = build(method)
    run_on(device, tmp_path, max_steps=1).fit(model, datamodule=data())
    perturb(model.to(device))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model.eval()(images.to(device)).cpu()
        if model.mergeable:
            merged: Tensor = model.merge()(images.to(device)).cpu()
            torch.testing.assert_close(merged, logits, atol=1e-4, rtol=1e-4)
        write_adapter(tmp_path / "adapter", checkpoint_of(model))
        loaded = PEFTMethod.from_delta(tmp_path / "adapter")
        torch.testing.assert_close(loaded(images), logits, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize("method", COMPILED)
def test_compiled_gradients(method: str, device: torch.device, build: Build, data: Data, tmp_path: Path) -> None:
    """Compiled and not compiled, the loss and every gradient are equal."""
    model: Any = build(method, **COMPILED[method])
    run_on(device, tmp_path, max_steps=1).fit(model, datamodule=data())
    perturb(model.to(device).train())
    batch = as_batch(torch.randn(4, 3, 32, 32, device=device), torch.arange(4, device=device) % 3)
    model.on_train_batch_start(batch, 0)
    found = []
    for compiled in (False, True):
        model.zero_grad()
        if compiled:
            # aot_eager has the traced backward pass of every backend, and no random numbers of its own
            model.compile(backend="aot_eager")
        torch.manual_seed(0)
        loss = model.loss(batch)
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append((loss.detach(), gradients))
    torch.compiler.reset()
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_sharded(precision: Any, device: torch.device, build: Build, data: Data, tmp_path: Path) -> None:
    """Blocks come to the GPU one after the other; one process has NCCL, which takes tensors of the GPU alone."""
    model = build("lora")
    run = run_on(device, tmp_path, precision=precision, strategy=Sharded(), devices=1)
    try:
        run.fit(model, datamodule=data())
        assert {p.device.type for p in model.parameters()} == {device.type}
        run.save_checkpoint(tmp_path / "model.ckpt")
        tested = run.test(model, datamodule=data(), ckpt_path=tmp_path / "model.ckpt", verbose=False)[0]
    finally:
        distributed.destroy_process_group()
    alone = PEFTMethod.from_delta(tmp_path / "model.ckpt")
    found = run_on(device, tmp_path, precision=precision).test(alone, datamodule=data(), verbose=False)[0]
    assert tested == pytest.approx(found, abs=1e-5)
