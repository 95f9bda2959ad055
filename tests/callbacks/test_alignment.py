"""The alignment ratio against reference values, and that measuring it leaves no trace."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from callbacks.alignment import Alignment, alignment, squares
from datamodules import ImageDataset
from methods import PEFTMethod

Build = Callable[..., PEFTMethod]
Data = Callable[..., ImageDataset]
MakeTrainer = Callable[..., Trainer]


def ratio(weight: Tensor, z: Tensor) -> float | None:
    return alignment(squares(weight, z).tolist(), weight.shape[1])


def test_golden(pytestconfig: pytest.Config) -> None:
    path = Path(pytestconfig.getoption("--golden-dir")) / "scaling_exponents.json"
    golden = json.loads(path.read_text())["alignment"]
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in golden.items()}
    assert ratio(tensors["W"], tensors["z"]) == pytest.approx(golden["A"], rel=1e-12)
    assert ratio(tensors["W_rank1"], tensors["z_row"]) == pytest.approx(golden["A_rank1"], rel=1e-12)


def test_random_weights_are_half_aligned() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, z = torch.randn(512, 512, generator=generator), torch.randn(64, 512, generator=generator)
    assert ratio(weight, z) == pytest.approx(0.5, abs=0.05)
    assert ratio(weight, torch.zeros(4, 512)) is None
    assert ratio(torch.zeros(512, 512), z) is None


class Kept(Alignment):
    """Keeps what was measured at each step."""

    values: dict[int, dict[str, float]]

    def measure(self, trainer: Trainer, pl_module: Any) -> dict[str, float]:
        found = super().measure(trainer, pl_module)
        self.values[trainer.global_step] = found
        return found


def run(model: Any, data: Data, trainer: MakeTrainer, **options: Any) -> Kept:
    callback = Kept(**options)
    callback.values = {}
    trainer(max_epochs=1, callbacks=[callback]).fit(model, datamodule=data())
    return callback


@pytest.mark.parametrize("method", ["full", "lora", "adapter", "ssf", "vpt"])
def test_training_goes_on_as_without_it(method: str, build: Build, data: Data, trainer: MakeTrainer) -> None:
    plain = build(method, drop_path=0.3)
    trainer(max_epochs=1).fit(plain, datamodule=data())
    measured = build(method, drop_path=0.3)
    found = run(measured, data, trainer, every_n_steps=2, layers=["fc2", "attn.qkv"]).values
    assert list(found) == [0, 2, 4]
    ours = dict(measured.named_parameters())
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, ours[name]), name
    hooks = [h for m in measured.modules() for h in m._forward_pre_hooks.values() if "recording" in repr(h)]
    assert not hooks
    assert {name.rpartition("/")[2] for name in found[0]} == {"A"}, "nothing has changed yet"
    layers = {f"blocks.{i}.{layer}" for i in range(2) for layer in ("mlp.fc2", "attn.qkv")}
    assert {name.rpartition("/")[0] for name in found[4]} == layers
    assert all(math.isfinite(value) for values in found.values() for value in values.values())


def test_variants_by_hand(build: Build, data: Data, trainer: MakeTrainer) -> None:
    """At the last step of a fit, from weights and inputs taken before and after it."""
    model: Any = build("full", lr=1e-2)
    model.configure_model()
    layer = model.backbone.blocks[1].mlp.fc1
    w0 = layer.weight.detach().clone()
    callback = Kept(every_n_steps=1, layers=["blocks.1.mlp.fc1"], images=2)
    callback.values = {}
    trained = trainer(max_epochs=1, callbacks=[callback])
    trained.fit(model, datamodule=data())
    z0 = callback.first_inputs["blocks.1.mlp.fc1"]
    assert z0.shape == (2 * 17, 48)
    last = callback.measure(trained, model)
    w, z = layer.weight.detach(), callback.inputs(model)["blocks.1.mlp.fc1"]
    pairs = {"A": (w, z), "alpha": (w - w0, z0), "omega": (w0, z - z0), "u": (w - w0, z - z0)}
    by_hand = {f"blocks.1.mlp.fc1/{kind}": ratio(*pair) for kind, pair in pairs.items()}
    assert last == pytest.approx(by_hand, rel=1e-5)


def test_lora_updates_count_as_weights(build: Build, data: Data, trainer: MakeTrainer) -> None:
    model: Any = build("lora", lora_targets=["qkv"], lora_rank=1)
    found = run(model, data, trainer, every_n_steps=5, layers=["blocks.0.attn.qkv"])
    lora = model.backbone.blocks[0].attn.qkv
    weight = found.weights(model)["blocks.0.attn.qkv"]
    torch.testing.assert_close(weight, model.merge().get_submodule("blocks.0.attn.qkv").weight)
    assert not torch.equal(weight, lora.weight)
    assert found.values[5]["blocks.0.attn.qkv/alpha"] > found.values[5]["blocks.0.attn.qkv/A"] - 0.5


def test_an_accumulated_step_is_measured_once(build: Build, data: Data, trainer: MakeTrainer) -> None:
    calls: list[int] = []

    class Counted(Alignment):
        def measure(self, trainer: Trainer, pl_module: Any) -> dict[str, float]:
            calls.append(trainer.global_step)
            return super().measure(trainer, pl_module)

    run_ = trainer(max_epochs=1, accumulate_grad_batches=3, callbacks=[Counted(every_n_steps=1)])
    run_.fit(build("linear_probe"), datamodule=data())
    assert calls == [0, 1]


def test_logged(build: Build, data: Data, trainer: MakeTrainer, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    callback = Alignment(every_n_steps=3, layers=["head"])
    trainer(max_epochs=1, logger=logger, log_every_n_steps=1, callbacks=[callback]).fit(
        build("linear_probe"), datamodule=data()
    )
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0].split(",")
    # the features of a frozen backbone stay: no omega, no u
    assert {name for name in header if "alignment" in name} == {"alignment/head/A", "alignment/head/alpha"}


def test_refused(build: Build, data: Data, trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match="every_n_steps=0: expected at least 1"):
        Alignment(every_n_steps=0)
    with pytest.raises(ValueError, match=r"layers=\['qvk'\]: no linear layer .* blocks\.0\.attn\.qkv"):
        run(build("ssf"), data, trainer, layers=["qvk"])
    sharded: Any = SimpleNamespace(strategy=ModelParallelStrategy())
    with pytest.raises(ValueError, match=r"measures whole weights, and .*ModelParallelStrategy has parts"):
        Alignment().setup(sharded, build("ssf"), "fit")


def test_a_layer_of_one_input_has_no_alignment() -> None:
    assert ratio(nn.Linear(1, 2).weight.detach(), torch.ones(3, 1)) is None
