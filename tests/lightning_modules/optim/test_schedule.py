"""Schedules, value by value."""

import math
from typing import Any

import pytest
import torch
from timm.scheduler import CosineLRScheduler
from torch import nn

from lightning_modules.optim.schedule import warmup_decay, warmup_drops


def test_warmup_and_cosine() -> None:
    factor = warmup_decay(12, 2, lr=0.1, warmup_lr=0.02, min_lr=0.01)
    assert [factor(step) for step in (0, 1, 2)] == pytest.approx([0.2, 0.6, 1.0])
    middle = 0.01 + (0.1 - 0.01) * (1 + math.cos(math.pi / 2)) / 2
    assert factor(7) == pytest.approx(middle / 0.1)
    assert factor(12) == factor(99) == pytest.approx(0.1)  # stays at min_lr


def test_no_warmup() -> None:
    factor = warmup_decay(10, 0, lr=0.1)
    assert factor(0) == 1.0
    assert factor(10) == pytest.approx(0.0)


def test_warmup_that_fills_the_run() -> None:
    """The last step has the peak, whatever number of steps was asked for."""
    factor = warmup_decay(5, 50, lr=0.1, warmup_lr=0.0)
    assert [factor(step) for step in range(5)] == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])


def test_warmup_from_above_the_peak() -> None:
    factor = warmup_decay(10, 4, lr=0.1, warmup_lr=0.5)
    assert [factor(step) for step in range(4)] == [1.0] * 4


def test_polynomial() -> None:
    """mmsegmentation's poly: ``(lr - min_lr) * (1 - step / steps) ** power + min_lr``, counted from the first step."""
    factor = warmup_decay(100, 20, lr=0.1, warmup_lr=0.0, min_lr=0.01, inside=True, power=0.9)
    rates = [0.1 * factor(step) for step in range(101)]
    assert rates[20:] == pytest.approx([0.09 * (1 - step / 100) ** 0.9 + 0.01 for step in range(20, 101)])
    assert rates[:20] == pytest.approx([0.1 * step / 20 for step in range(20)])
    line = warmup_decay(100, 20, lr=0.1, power=1.0)
    assert [line(step) for step in (20, 60, 100)] == pytest.approx([1.0, 0.5, 0.0])


# the schedules of published codes, epoch by epoch


def of_timm(epochs: int, late: bool, lr: float, **options: Any) -> list[float]:
    """Learning rates of timm's own schedule, stepped after each epoch with the next number or, late, with its own."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=lr)
    schedule = CosineLRScheduler(optimizer, **options)
    rates = []
    for epoch in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step(epoch if late else epoch + 1)
    return rates


def ours(epochs: int, lr: float, **options: Any) -> list[float]:
    factor = warmup_decay(epochs, 10, lr=lr, **options)
    return [lr * factor(epoch) for epoch in range(epochs)]


def test_ssf_gps_and_hst() -> None:
    """timm's training script: the cosine counts the warm-up, and ten more epochs run at the end."""
    found = ours(110, 5e-3, warmup_lr=1e-7, min_lr=1e-8, inside=True, cooldown=10)
    theirs = of_timm(110, False, 5e-3, t_initial=100, warmup_t=10, warmup_lr_init=1e-7, lr_min=1e-8)
    assert found == pytest.approx(theirs, rel=1e-12)
    assert found[0] == pytest.approx(1e-7)
    assert found[10] / 5e-3 == pytest.approx((1 + math.cos(math.pi / 10)) / 2, rel=1e-4)
    assert found[100:] == pytest.approx([1e-8] * 10)


def test_fact_convpass_repadapter_noah_sct_and_spt() -> None:
    """PETL-ViT's loop: the schedule is stepped after an epoch, with that epoch's number."""
    found = ours(100, 1e-3, warmup_lr=1e-6, min_lr=1e-5, inside=True, late=True)
    theirs = of_timm(100, True, 1e-3, t_initial=100, warmup_t=10, warmup_lr_init=1e-6, lr_min=1e-5)
    assert found == pytest.approx(theirs, rel=1e-12)
    assert found[:3] == pytest.approx([1e-6, 1e-6, 1e-6 + (1e-3 - 1e-6) / 10])


def test_schedule_by_steps_of_timm() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    options = {"t_initial": 60, "warmup_t": 10, "warmup_lr_init": 1e-3, "lr_min": 1e-4, "t_in_epochs": False}
    schedule = CosineLRScheduler(optimizer, **options)
    factor = warmup_decay(70, 10, lr=0.1, warmup_lr=1e-3, min_lr=1e-4, inside=True, cooldown=10)
    for update in range(70):
        assert 0.1 * factor(update) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        schedule.step_update(update + 1)


def test_vpt_and_e2vpt() -> None:
    """src/solver/lr_scheduler.py of VPT: from zero, and a cosine over the epochs after the warm-up."""
    theirs = [0.25 * (e / 10 if e < 10 else 0.5 * (1 + math.cos(math.pi * (e - 10) / 90))) for e in range(100)]
    assert ours(100, 0.25) == pytest.approx(theirs, rel=1e-12)


def test_dyt_and_adaptformer() -> None:
    """util/lr_sched.py of MAE: by fractions of epochs, here 4 steps each."""
    factor = warmup_decay(400, 80, lr=0.4, warmup_lr=0.0, min_lr=1e-5)
    for step in range(400):
        epoch = step / 4
        rate = 0.4 * epoch / 20
        if epoch >= 20:
            rate = 1e-5 + (0.4 - 1e-5) * 0.5 * (1 + math.cos(math.pi * (epoch - 20) / 80))
        assert 0.4 * factor(step) == pytest.approx(rate, rel=1e-9)


def test_sums_of_the_rates() -> None:
    """In peaks, for 10 of 100 epochs of warm-up from 0: a cosine after the warm-up has 11 % more."""
    factors = {inside: warmup_decay(100, 10, lr=1.0, inside=inside) for inside in (True, False)}
    sums = {inside: sum(map(factor, range(100))) for inside, factor in factors.items()}
    assert sums == pytest.approx({True: 45.07, False: 50.0}, abs=1e-3)


def test_cooldown_that_fills_the_run() -> None:
    factor = warmup_decay(5, 2, lr=0.1, min_lr=0.01, cooldown=10)
    assert [factor(step) for step in range(3)] == pytest.approx([1.0, 0.1, 0.1])


def test_drops() -> None:
    """A tenth of the rate from each drop on, after a linear warm-up."""
    factor = warmup_drops(4, [8, 11], lr=0.1, warmup_lr=0.02)
    assert [factor(step) for step in (0, 2, 4, 7)] == pytest.approx([0.2, 0.6, 1.0, 1.0])
    assert [factor(step) for step in (8, 10, 11, 99)] == pytest.approx([0.1, 0.1, 0.01, 0.01])
