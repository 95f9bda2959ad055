"""Operations over ranks: sums, and failures that stop all of them."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import distributed

from callbacks.scoring import ranks
from callbacks.scoring.ranks import add_over_ranks, all_or_none, over_ranks
from tests.support.ranks import TwoRanks

SHAPES = {"b": (3, 4), "a": (5,), "c": (2, 2, 2), "d": ()}


def trainer(world_size: int) -> Any:
    """What ``all_or_none`` reads of a trainer."""
    return SimpleNamespace(world_size=world_size, strategy=SimpleNamespace(root_device=torch.device("cpu")))


def sums_of(rank: int) -> dict[str, torch.Tensor]:
    return {name: torch.full(shape, 10.0**rank) + len(name) for name, shape in SHAPES.items()}


def join(rank: int) -> None:
    if not distributed.is_initialized():
        distributed.init_process_group("gloo", rank=rank, world_size=2)


def added(rank: int, bucket: int) -> tuple[dict[str, torch.Tensor], int]:
    """Sums over both ranks, and the number of all-reduces that made them."""
    join(rank)
    count, all_reduce, default = 0, distributed.all_reduce, ranks.BUCKET

    def counted(tensor: torch.Tensor) -> None:
        nonlocal count
        count += 1
        all_reduce(tensor)

    sums = sums_of(rank)
    kept = {name: tensor.data_ptr() for name, tensor in sums.items()}
    try:
        distributed.all_reduce, ranks.BUCKET = counted, bucket  # type: ignore[assignment]
        add_over_ranks(sums)
    finally:
        distributed.all_reduce, ranks.BUCKET = all_reduce, default
    assert kept == {name: tensor.data_ptr() for name, tensor in sums.items()}, "added in place"
    return sums, count


@pytest.mark.parametrize(
    ("bucket", "reductions"), [(1, 4), (4 * 17, 2), (4 * 26, 1)], ids=["a tensor at a time", "two buckets", "one"]
)
def test_sums_of_two_ranks(bucket: int, reductions: int, two_ranks: TwoRanks) -> None:
    expected = {name: sums_of(0)[name] + sums_of(1)[name] for name in SHAPES}
    for found, count in two_ranks(added, bucket):
        assert count == reductions
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_no_sums_no_communication() -> None:
    add_over_ranks({})


def gathered(rank: int) -> list[torch.Tensor]:
    join(rank)
    return over_ranks(list(sums_of(rank).values()))


def test_tensors_of_two_ranks(two_ranks: TwoRanks) -> None:
    for found in two_ranks(gathered):
        for tensor, (name, shape) in zip(found, SHAPES.items(), strict=True):
            assert tensor.shape == shape
            assert torch.equal(tensor, sums_of(0)[name] + sums_of(1)[name])


def test_tensors_of_one_process_stay() -> None:
    tensors = list(sums_of(0).values())
    assert all(torch.equal(one, other) for one, other in zip(over_ranks(tensors), tensors, strict=True))


def failure(rank: int, failing: list[int]) -> str:
    join(rank)
    try:
        with all_or_none(trainer(world_size=2)):
            if rank in failing:
                raise KeyError(f"rank {rank}")
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "passed"


@pytest.mark.parametrize("failing", [[], [0], [1], [0, 1]], ids=str)
def test_all_ranks_fail_together(failing: list[int], two_ranks: TwoRanks) -> None:
    other = "ValueError: scoring failed on another rank; see the message of that rank" if failing else "passed"
    expected = [f"KeyError: 'rank {rank}'" if rank in failing else other for rank in (0, 1)]
    assert two_ranks(failure, failing) == expected


def test_one_process_raises_its_own_error() -> None:
    with all_or_none(trainer(world_size=1)):
        pass
    with pytest.raises(KeyError, match="mine"), all_or_none(trainer(world_size=1)):
        raise KeyError("mine")
