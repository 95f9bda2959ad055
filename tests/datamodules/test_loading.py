"""Loaders: the order of an epoch, workers, and what a loader drops."""

import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.loading import BalancedSampler, EpochSampler, score_order
from tests.support.pictures import INPUT, Listed, pictures


def test_train_loader_drops_the_rest_and_evaluation_does_not() -> None:
    module = Listed({"train": pictures(7), "test": pictures(7)}, batch_size=3, num_workers=0)
    module.splits = {split: module.dataset(split, samples) for split, samples in module.given.items()}
    assert [batch.size for batch in module.train_dataloader()] == [3, 3]
    assert [batch.size for batch in module.test_dataloader()] == [3, 3, 1]
    assert module.val_dataloader() == []
    module.drop_last = False
    assert [batch.size for batch in module.train_dataloader()] == [3, 3, 1]
    module.eval_batch_size = 5
    assert [batch.size for batch in module.predict_dataloader()] == [5, 2]


def test_workers_only_where_something_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    for cache, workers in {"ram": 0, "none": 1}.items():
        module: Any = Listed(batch_size=2, cache=cache)
        module.splits = {split: module.dataset(split, pictures()) for split in ("train", "test")}
        assert module.train_dataloader().num_workers == module.test_dataloader().num_workers == workers
    assert Listed(num_workers=0).loader(module.splits["test"], 2).num_workers == 0


def test_workers_start_when_the_epoch_is_known() -> None:
    """A resumed run makes its iterator before it knows its epoch."""

    def batches(late: int | None) -> list[Tensor]:
        module = Listed({"train": pictures(12)}, batch_size=4, num_workers=2, augmentation="rrc", cache="none")
        module.trainer = None
        module.configure(INPUT)
        module.splits["train"] = module.dataset("train", pictures(12))
        loader: Any = module.train_dataloader()
        if late is None:
            loader.sampler.set_epoch(3)
            return [batch.inputs for batch in loader]
        iterator = iter(loader)
        loader.sampler.set_epoch(late)
        return [batch.inputs for batch in iterator]

    expected = batches(None)
    assert all(torch.equal(a, b) for a, b in zip(batches(3), expected, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(batches(1), expected, strict=True))


def test_epoch_sampler_depends_on_seed_and_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset: Any = torch.arange(10)

    def order(seed: int, epoch: int, world_size: int = 1, rank: int = 0) -> tuple[list[int], Tensor]:
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        sampler = EpochSampler(dataset, world_size, rank)
        sampler.set_epoch(epoch)
        return list(sampler), torch.rand(3, generator=sampler.generator)

    first, draw = order(0, 0)
    torch.manual_seed(123)  # the global generator plays no part
    again, same_draw = order(0, 0)
    assert first == again
    assert torch.equal(draw, same_draw)
    assert sorted(first) == list(range(10))
    assert order(0, 1)[0] != first
    assert not torch.equal(order(0, 1)[1], draw)
    assert order(1, 0)[0] != first
    shares = [order(0, 0, 2, rank)[0] for rank in (0, 1)]
    assert sorted(shares[0] + shares[1]) == list(range(10))


def test_order_of_scoring_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert score_order(5, 2, shuffle=False, drop_last=False, passes=1) == [[0, 1], [2, 3], [4]]
    assert score_order(5, 2, shuffle=False, drop_last=True, passes=2) == [[0, 1], [2, 3]] * 2
    drawn = score_order(5, 5, shuffle=True, drop_last=False, passes=2)
    assert [sorted(batch) for batch in drawn] == [[0, 1, 2, 3, 4]] * 2
    assert drawn[0] != drawn[1]
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert score_order(5, 5, shuffle=True, drop_last=False, passes=2) != drawn


def test_replaced_split_comes_back() -> None:
    module = Listed(batch_size=2)
    module.splits = {split: module.dataset(split, pictures()) for split in ("train", "val")}
    before = dict(module.splits)
    for size in (4, 5):  # the second replacement must not become the original
        module.replace("train", module.dataset("train", pictures(size)))
    assert len(module.splits["train"]) == 5
    module.restore()
    assert module.splits == before
    module.restore()
    assert module.splits == before


def test_workers_get_no_trainer_and_no_pixels() -> None:
    module: Any = Listed(batch_size=2, augmentation="rrc")
    module.splits = {split: module.dataset(split, pictures()) for split in ("train", "test")}
    module.trainer = SimpleNamespace(lambdas=lambda: None)  # cannot be pickled
    dataset = pickle.loads(pickle.dumps(module.splits["train"]))
    assert dataset[3][0].shape == (3, 16, 16)
    assert dataset.make.__self__.splits == {}
    assert module.splits
    assert module.trainer is not None


@pytest.mark.parametrize("number", [-1, 1_000_000])
def test_numbers_of_workers_that_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match=f"num_workers={number}: expected 0 to 1,024 processes"):
        Listed(num_workers=number)


def test_balanced_draws() -> None:
    """Classes are equally likely; ranks share one order, which depends on the seed and the epoch alone."""
    labels = torch.tensor([0] * 90 + [1] * 10)

    def order(epoch: int, world: int = 1, rank: int = 0) -> list[int]:
        sampler = BalancedSampler(range(100), world, rank, labels)  # type: ignore[arg-type]
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(3) == order(3) != order(4)
    shares = [order(3, 2, rank) for rank in (0, 1)]
    assert [index for pair in zip(*shares, strict=True) for index in pair] == order(3)
    drawn = torch.cat([labels[order(epoch)] for epoch in range(20)])
    assert len(drawn) == 2000
    assert abs(float(drawn.float().mean()) - 0.5) < 0.04
