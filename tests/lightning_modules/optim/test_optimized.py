"""Optimizers, groups and schedules of a fit, value by value."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from timm.scheduler import CosineLRScheduler
from torch import nn

from datamodules import ImageDataset
from methods import PEFTMethod

Build = Callable[..., PEFTMethod]
Data = Callable[..., ImageDataset]
MakeTrainer = Callable[..., Trainer]


class Rates(Callback):
    """The learning rate and the step at the start of every batch."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        (optimizer,) = trainer.optimizers
        assert len({group["lr"] for group in optimizer.param_groups}) == 1
        self.rates.append(optimizer.param_groups[0]["lr"])


def expected_rate(step: int, total: int, warmup: int, lr: float, warmup_lr: float, min_lr: float) -> float:
    if step < warmup:
        return warmup_lr + (lr - warmup_lr) * step / warmup
    return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


@pytest.mark.parametrize("warmup_epochs", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_schedule_by_step(
    warmup_epochs: float, accumulate: int, build: Build, data: Data, trainer: MakeTrainer
) -> None:
    options = {"lr": 0.1, "warmup_lr": 1e-4, "min_lr": 1e-3}
    rates = Rates()
    run = trainer(max_epochs=3, callbacks=[rates], accumulate_grad_batches=accumulate, limit_val_batches=0)
    run.fit(build("linear_probe", warmup_epochs=warmup_epochs, lr_interval="step", **options), datamodule=data())
    steps = 6 // accumulate  # an epoch has 24 images in batches of 4
    warmup = round(warmup_epochs * steps)
    by_hand = [expected_rate(i // accumulate, 3 * steps, warmup, **options) for i in range(18)]
    assert rates.rates == pytest.approx(by_hand)
    (scheduler,) = run.lr_scheduler_configs
    assert scheduler.scheduler.get_last_lr()[0] == pytest.approx(1e-3)  # the cosine has arrived


def test_schedule_by_epoch(build: Build, data: Data, trainer: MakeTrainer) -> None:
    options = {"lr": 0.1, "warmup_lr": 1e-4, "min_lr": 1e-3}
    rates = Rates()
    run = trainer(max_epochs=5, callbacks=[rates], limit_train_batches=2, limit_val_batches=0)
    run.fit(build("linear_probe", warmup_epochs=2, lr_interval="epoch", **options), datamodule=data())
    assert rates.rates == pytest.approx([expected_rate(i // 2, 5, 2, **options) for i in range(10)])


@pytest.mark.parametrize("late", [True, False])
def test_schedule_of_timm_in_a_run(late: bool, build: Build, data: Data, trainer: MakeTrainer) -> None:
    """Cosine with the warm-up inside, cool-down and late steps, against timm's own schedule."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    schedule = CosineLRScheduler(optimizer, t_initial=5, warmup_t=2, warmup_lr_init=1e-4, lr_min=1e-3)
    theirs = []
    for epoch in range(7):
        theirs.append(optimizer.param_groups[0]["lr"])
        schedule.step(epoch if late else epoch + 1)
    rates = Rates()
    options = {"lr": 0.1, "warmup_epochs": 2, "warmup_lr": 1e-4, "min_lr": 1e-3, "lr_interval": "epoch"}
    options |= {"warmup_inside": True, "cooldown_epochs": 2, "lr_late": late}
    run = trainer(max_epochs=7, callbacks=[rates], limit_train_batches=1, limit_val_batches=0)
    run.fit(build("linear_probe", **options), datamodule=data())
    assert rates.rates == pytest.approx(theirs)


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_a_resumed_run_follows_its_own_options(
    interval: str, build: Build, data: Data, trainer: MakeTrainer, tmp_path: Path
) -> None:
    """Not those that the restored optimizer and schedule bring along: more epochs, another rate, another decay."""
    first = trainer(max_epochs=2, limit_val_batches=0)
    options = {"lr": 0.1, "warmup_epochs": 1.0, "lr_interval": interval}
    first.fit(build("linear_probe", **options), datamodule=data())
    first.save_checkpoint(tmp_path / "two epochs.ckpt")
    options |= {"lr": 0.4, "min_lr": 1e-3, "weight_decay": 0.5}
    rates = Rates()
    longer = trainer(max_epochs=4, limit_val_batches=0, callbacks=[rates])
    longer.fit(build("linear_probe", **options), datamodule=data(), ckpt_path=tmp_path / "two epochs.ckpt")
    if interval == "step":
        by_hand = [expected_rate(step, 24, 6, 0.4, 1e-6, 1e-3) for step in range(12, 24)]
    else:
        by_hand = [expected_rate(step // 6, 4, 1, 0.4, 1e-6, 1e-3) for step in range(12, 24)]
    assert rates.rates == pytest.approx(by_hand)
    assert [group["weight_decay"] for group in longer.optimizers[0].param_groups] == [0.5, 0.0]


def test_warmup_from_above_the_peak_is_none(build: Build, data: Data, trainer: MakeTrainer) -> None:
    rates = Rates()
    run = trainer(max_epochs=2, callbacks=[rates], limit_val_batches=0)
    run.fit(build("linear_probe", lr=1e-3, warmup_lr=1.0, warmup_epochs=1.0), datamodule=data())
    assert max(rates.rates) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("name", "kind", "defaults"),
    [
        ("adamw", torch.optim.AdamW, {"betas": (0.9, 0.999)}),
        ("adam", torch.optim.Adam, {"betas": (0.9, 0.999)}),
        ("sgd", torch.optim.SGD, {"momentum": 0.9, "nesterov": False}),
    ],
)
def test_optimizer(
    name: str, kind: type, defaults: dict[str, Any], build: Build, data: Data, trainer: MakeTrainer
) -> None:
    model = build("linear_probe", optimizer=name, lr=0.3, weight_decay=0.2)
    run = trainer(max_steps=1)
    run.fit(model, datamodule=data())
    (optimizer,) = run.optimizers
    assert type(optimizer) is kind
    matrices, vectors = optimizer.param_groups
    assert [(group["initial_lr"], group["weight_decay"]) for group in (matrices, vectors)] == [(0.3, 0.2), (0.3, 0.0)]
    assert all(optimizer.defaults[key] == value for key, value in defaults.items())
    assert optimizer.defaults["fused"]
    assert matrices["params"] == [model.backbone.head.weight]
    assert vectors["params"] == [model.backbone.head.bias]


def test_groups_go_by_shape(build: Build) -> None:
    model: Any = build("linear_probe", weight_decay=0.2)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    shapes: dict[str, tuple[int, ...]] = {
        "scale": (5,),
        "gate": (),
        "channels": (1, 5, 1, 1),
        "token": (1, 1, 5),
        "matrix": (5, 2),
        "deep": (1, 5, 2),
    }
    for name, shape in shapes.items():
        setattr(model, name, nn.Parameter(torch.ones(shape)))
    model.frozen = nn.Parameter(torch.ones(3, 3), requires_grad=False)
    decayed, free = model.param_groups()
    assert [parameter.shape for parameter in decayed["params"]] == [(5, 2), (1, 5, 2)]
    assert len(free["params"]) == 4
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.2, 0.0)
    del model.scale, model.gate, model.channels, model.token
    assert len(model.param_groups()) == 1, "an empty group"


def test_groups_by_other_rules(build: Build) -> None:
    """Of the last block, the final norm and the head: all 12 + 2 + 2 tensors train."""
    counts = {"all": [16], "all_but_bias": [8, 8], "all_but_norm_and_bias": [5, 11], "all_but_head_bias": [15, 1]}
    for rule, expected in counts.items():
        model = build("partial", decayed=rule)
        model.configure_model()
        assert [len(group["params"]) for group in model.param_groups()] == expected, rule


def test_nothing_to_train(build: Build, data: Data, trainer: MakeTrainer) -> None:
    model: Any = build("linear_probe")
    model.param_groups = list
    with pytest.raises(ValueError, match="LinearProbeClassification has nothing to train"):
        trainer().fit(model, datamodule=data())


@pytest.mark.parametrize("lr", [0.0, -1.0])
def test_learning_rate(lr: float, build: Build) -> None:
    with pytest.raises(ValueError, match=f"lr={lr}: expected a positive"):
        build("linear_probe", lr=lr)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["lr", "adam_eps", "weight_decay", "warmup_epochs", "warmup_lr", "min_lr"])
def test_numbers_that_no_optimizer_can_use(name: str, value: float, build: Build) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}: expected"):
        build("linear_probe", **{name: value})


def test_drops_by_steps(build: Build, data: Data, trainer: MakeTrainer) -> None:
    """Epochs of drops become steps: after 1 of 2 epochs the rate is a tenth."""
    run = trainer(max_epochs=2)
    run.fit(build("linear_probe", lr=0.1, lr_decay="drops", lr_drops=[1.0]), datamodule=data())
    factor, steps = run.lr_scheduler_configs[0].scheduler.lr_lambdas[0], run.num_training_batches
    assert [factor(step) for step in (0, steps - 1, steps)] == pytest.approx([1.0, 1.0, 0.1])


def test_polynomial_by_steps(build: Build, data: Data, trainer: MakeTrainer) -> None:
    """A run that counts steps, with a warm-up of steps: the decay is mmsegmentation's, from the first step on."""
    rates = Rates()
    run = trainer(max_epochs=-1, max_steps=10, callbacks=[rates], limit_val_batches=0)
    options = {"lr": 0.1, "warmup_lr": 0.0, "warmup_steps": 4, "warmup_inside": True, "lr_decay": "poly"}
    run.fit(build("linear_probe", lr_power=0.9, **options), datamodule=data())
    assert rates.rates[:4] == pytest.approx([0.0, 0.025, 0.05, 0.075])
    assert rates.rates[4:] == pytest.approx([0.1 * (1 - step / 10) ** 0.9 for step in range(4, 10)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_power": 0.9}, "lr_power=0.9: expected a positive power, with lr_decay poly"),
        ({"lr_power": 0.0, "lr_decay": "poly"}, "lr_power=0.0"),
        ({"lr_decay": "drops"}, "lr_drops=None: expected epochs above 0 with lr_decay drops"),
        ({"lr_drops": [1.0]}, r"lr_drops=\[1.0\]"),
        ({"lr_decay": "drops", "lr_drops": [1.0], "min_lr": 0.1}, "lr_decay=drops: expected no"),
        ({"warmup_steps": 5, "warmup_epochs": 1.0}, "warmup_steps=5: expected lr_interval step and no warmup_epochs"),
        ({"warmup_steps": 5, "lr_interval": "epoch"}, "warmup_steps=5: expected lr_interval step"),
    ],
)
def test_refused_schedules(options: dict[str, Any], message: str, build: Build) -> None:
    with pytest.raises(ValueError, match=message):
        build("linear_probe", **options)
