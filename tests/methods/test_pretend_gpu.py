"""Every method on a pretend GPU: no operation mixes devices, no step makes the host wait, dtypes are as documented."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, distributed, nn

from callbacks.alignment import Alignment
from callbacks.cost import Cost
from callbacks.ema import EMA
from callbacks.features.cache import FeatureCache
from callbacks.finite_loss import StopOnNonFiniteLoss
from callbacks.predictions import Predictions
from callbacks.scoring.score_before_fit import ScoreBeforeFit
from checkpoints.delta import write_adapter
from datamodules import ImageDataset
from methods import METHODS, PEFTMethod
from tests.conftest import ROOT, checkpoint_of
from tests.support.pretend_cuda import DEVICE, FirstOfTwo, events, pretend, trainer, two_ranks

Build = Callable[..., PEFTMethod]
Data = Callable[..., ImageDataset]
# methods with code of their own for a precision: custom backward passes, casts, statistics, scores
OTHERS = {
    "bf16-true": ["lora", "ssf", "velora", "gps", "last", "hst", "dyt", "diff_pruning"],
    "16-mixed": ["lora", "ssf", "hst", "dyt"],
    "16-true": ["lora", "gps", "last", "dyt"],
    "64-true": ["lora", "ssf", "dyt"],
}
STEPPED = [name for name, method in METHODS.items() if not method.one_pass]
CASES = [(m, p) for p in ("32-true", "bf16-mixed") for m in STEPPED] + [(m, p) for p in OTHERS for m in OTHERS[p]]
OPTIONS = {"diff_pruning": {"diff_burn_in": 0.2}}  # gates are fixed in the first step, which waits once for each tensor
BATCH = {("h2d", ""): 3}  # Lightning brings inputs, targets and valid, from memory that a real run pins
NAMES = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16"}
ROW = re.compile(r"^\| `(\d\d-\w+|bf16-\w+)` \|(.*)\|$", re.MULTILINE)  # of a precision
DOCUMENTED = {
    precision: [cell.strip() for cell in cells.split("|")]
    for precision, cells in ROW.findall((ROOT / "docs/precision.md").read_text())
}


class Observer(Callback):
    """Events of each training step and each validation batch, and the dtypes of the last step."""

    def __init__(self) -> None:
        self.steps: list[Counter[tuple[str, str]]] = []
        self.batches: list[Counter[tuple[str, str]]] = []
        self.gradients: set[str] = set()
        self.state: set[str] = set()

    def on_train_batch_end(self, *args: Any) -> None:
        self.steps.append(events.copy())
        events.clear()

    def on_validation_batch_end(self, *args: Any) -> None:
        self.batches.append(events.copy())
        events.clear()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.gradients = names(p.grad for p in pl_module.parameters() if p.grad is not None)
        state = [value for values in optimizer.state.values() for value in values.values() if value.dim()]
        self.state = names(state)


def names(tensors: Any) -> set[str]:
    return {NAMES[t.dtype] for t in tensors if t.is_floating_point()}


def trained(model: PEFTMethod) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize(("method", "precision"), CASES)
def test_fit(method: str, precision: str, build: Build, data: Data, tmp_path: Path) -> None:
    """Score pass, steps, validation, resuming, files and merging."""
    model, seen = build(method, **OPTIONS.get(method, {})), Observer()
    callbacks: list[Callback] = [seen, Cost(), StopOnNonFiniteLoss()]
    steps = 3 if method == "dyt" else 2  # it creates a metric after its first step
    options: dict[str, Any] = {"limit_train_batches": steps, "num_sanity_val_steps": 0, "callbacks": callbacks}
    options |= {"default_root_dir": tmp_path}
    with pretend():
        run = trainer(precision, max_epochs=1, **options)
        run.fit(model, datamodule=data(eval_batch_size=3))
        run.save_checkpoint(tmp_path / "model.ckpt")
    scaler = {("wait", ""): 1} if precision == "16-mixed" else {}  # GradScaler reads whether a gradient overflowed
    assert seen.steps[-1] == BATCH | scaler
    gathers = {key: count for key, count in seen.batches[-1].items() if key not in BATCH}
    assert len(gathers) == (method == "dyt"), gathers  # the number of its kept tokens is a shape
    wanted = {DOCUMENTED[precision][1]}
    assert names(trained(model)) == seen.gradients == wanted
    assert seen.state in (wanted, set())
    if precision != "32-true":
        return
    with pretend():
        again = build(method, **OPTIONS.get(method, {}))
        trainer(precision, max_epochs=2, **options).fit(
            again, datamodule=data(), ckpt_path=tmp_path / "model.ckpt", weights_only=True
        )
        images = torch.randn(2, 3, 32, 32)
        on_gpu = again.to(DEVICE).eval()
        write_adapter(tmp_path / "adapter", checkpoint_of(on_gpu))
        logits = on_gpu(images.to(DEVICE)).cpu()
        if METHODS[method].mergeable:
            merged = on_gpu.merge()(images.to(DEVICE)).cpu()
            torch.testing.assert_close(merged, logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(PEFTMethod.from_delta(tmp_path / "adapter")(images), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("precision", DOCUMENTED)
def test_dtypes_of_the_docs(precision: str, build: Build, data: Data, tmp_path: Path) -> None:
    model, seen, found = build("gps"), Observer(), dict[str, set[str]]()

    class Look(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            attention = model.backbone.blocks[0].attn.proj
            attention.register_forward_hook(lambda module, args, output: found.update(activations=names([output])))
            found["frozen"] = names([attention.weight])

    class Sums(Callback):
        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            plain = model.build_scorer

            def build_scorer() -> Any:
                scorer = plain()
                found["sums"] = scorer.sums  # type: ignore[assignment]
                return scorer

            model.build_scorer = build_scorer  # type: ignore[method-assign]

    with pretend():
        options: dict[str, Any] = {"max_steps": 3, "limit_val_batches": 0, "default_root_dir": tmp_path}
        run = trainer(precision, callbacks=[Sums(), Look(), seen], **options)
        run.fit(model, datamodule=data())
    sums: Any = found["sums"]
    columns = [found["frozen"], names(trained(model)), seen.gradients, seen.state, found["activations"]]
    assert [*columns, names(sums.values())] == [{cell} for cell in DOCUMENTED[precision]]


OLD_GATHER = "ignore:torch.distributed.nn.functional.all_gather is deprecated"  # lightning 2.6 with torch 2.14


@pytest.mark.filterwarnings(OLD_GATHER)
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("gps", {}),
        ("spt", {}),
        ("hst", {}),
        ("dyt", {"dyt_sync_rate": True}),
        ("velora", {"velora_init": "svd"}),
        ("velora", {"velora_init": "running_average"}),
    ],
)
def test_collectives(
    method: str, options: dict[str, Any], build: Build, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Score pass, step, validation and costs send tensors of the device alone, because NCCL takes no others."""
    callbacks: list[Callback] = [Cost(), StopOnNonFiniteLoss(), EMA(0.5)]
    where = {"default_root_dir": tmp_path, "use_distributed_sampler": False}
    with two_ranks(monkeypatch), pretend():
        run = trainer("32-true", FirstOfTwo, max_steps=1, callbacks=callbacks, **where)
        run.fit(build(method, **options), datamodule=data())


@pytest.mark.filterwarnings(OLD_GATHER)
def test_other_collectives(build: Build, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cached features, cached scores, a warm start, layers' alignment, a test and a table of predictions."""
    where = {"default_root_dir": tmp_path, "use_distributed_sampler": False, "max_steps": 1, "inference_mode": False}
    with two_ranks(monkeypatch), pretend():
        for _ in range(2):  # written, then read
            caches: list[Callback] = [FeatureCache("gpu", cache_dir=str(tmp_path / "features"))]
            run = trainer("32-true", FirstOfTwo, callbacks=caches, **where)
            run.fit(build("linear_probe"), datamodule=data())
            scores: list[Callback] = [ScoreBeforeFit(cache_dir=str(tmp_path / "scores")), Alignment()]
            run = trainer("32-true", FirstOfTwo, callbacks=[*scores, Predictions()], **where)
            model = build("gps")
            run.fit(model, datamodule=data())
        run.save_checkpoint(tmp_path / "model.ckpt")
        run.test(model, datamodule=data(), verbose=False)
        run.predict(model, datamodule=data(), return_predictions=False)
        start = build("gps", init_from=str(tmp_path / "model.ckpt"))
        trainer("32-true", FirstOfTwo, **where).fit(start, datamodule=data())


def test_a_collective_on_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with two_ranks(monkeypatch), pretend():
        distributed.all_reduce(torch.ones(2).to(DEVICE))
        with pytest.raises(RuntimeError, match="No backend type associated with device type cpu"):
            distributed.all_reduce(torch.ones(2))


def test_mixed_devices_are_refused() -> None:
    with pretend(), pytest.raises(RuntimeError, match="same device"):
        torch.ones(2, device=DEVICE) + torch.ones(2)


def test_events_are_counted() -> None:
    with pretend() as found:
        there = torch.ones(2).to(DEVICE)
        float(there.sum())
        there[there > 0].cpu()
    assert found == {("h2d", ""): 1, ("wait", ""): 2, ("d2h", ""): 1}


def test_autocast_of_a_gpu() -> None:
    with pretend(), torch.autocast(DEVICE.type, torch.bfloat16):
        there: Tensor = nn.Linear(4, 4).to(DEVICE)(torch.ones(2, 4).to(DEVICE))
        assert there.dtype is torch.bfloat16
        assert nn.LayerNorm(4).to(DEVICE)(there).dtype is torch.float32
