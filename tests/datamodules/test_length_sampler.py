"""Order of an epoch by lengths."""

from typing import Any

import pytest
import torch

from datamodules.length_sampler import BATCHES, LengthSampler


def orders(count: int, world_size: int, epoch: int = 0, batch_size: int = 2) -> list[list[int]]:
    dataset: Any = torch.arange(count)
    lengths = torch.arange(count) * 37 % 101
    found = []
    for rank in range(world_size):
        sampler = LengthSampler(dataset, world_size, rank, lengths, batch_size)
        sampler.set_epoch(epoch)
        assert len(sampler) == len(list(sampler))
        found.append(list(sampler))
    return found


def test_every_sample_once() -> None:
    (order,) = orders(257, 1)
    assert sorted(order) == list(range(257))
    assert orders(257, 1) == [order]
    assert orders(257, 1, epoch=1) != [order]


def test_runs_are_sorted() -> None:
    (order,) = orders(257, 1)
    lengths = (torch.tensor(order) * 37 % 101).split(2 * BATCHES)
    assert len(lengths) == 3
    assert all(run.tolist() == sorted(run.tolist(), reverse=True) for run in lengths)
    assert {*order[:100]} != {*range(100)}, "samples are shuffled before"


def test_ranks_share_the_samples() -> None:
    shares = orders(101, 2)
    assert len(shares[0]) == len(shares[1]) == 51
    assert {*shares[0], *shares[1]} == {*range(101)}
    assert len([*shares[0], *shares[1]]) == 102, "one sample twice, because ranks have equal shares"


def test_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = orders(250, 1)
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert orders(250, 1) != before
