"""Files of features, without a model."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from callbacks.features import file


def one_rank() -> Any:
    """A trainer of one rank, as far as a file needs it."""
    strategy = SimpleNamespace(
        broadcast=lambda value: value,
        reduce=lambda value, reduce_op: value,
        barrier=lambda: None,
        root_device=torch.device("cpu"),
    )
    return SimpleNamespace(is_global_zero=True, strategy=strategy)


@pytest.mark.parametrize("dtype", file.DTYPES)
def test_rows_in_any_order_are_a_safetensors_file(dtype: torch.dtype, tmp_path: Path) -> None:
    wide, narrow = torch.randn(5, 2, 3).to(dtype), torch.arange(5).to(dtype)
    rows = iter([(3, (wide[3:], narrow[3:])), (0, (wide[:3], narrow[:3]))])
    path = tmp_path / "new folder" / "f.safetensors"
    file.write(one_rank(), path, rows, 5, {"key": "k"})
    for found in (file.read(path, "k"), tuple(load_file(path).values())):
        assert found is not None
        assert all(torch.equal(a, b) for a, b in zip(found, (wide, narrow), strict=True))
    assert [left.name for left in path.parent.iterdir()] == [path.name]


def test_failure_leaves_no_file(tmp_path: Path) -> None:
    def rows() -> Any:
        yield 0, (torch.zeros(1, 2),)
        raise KeyError("no more rows")

    with pytest.raises(KeyError, match="no more rows"):
        file.write(one_rank(), tmp_path / "f", rows(), 3, {"key": "k"})
    assert list(tmp_path.iterdir()) == []
    assert file.read(tmp_path / "f", "k") is None


def test_disk_is_mapped_into_memory(tmp_path: Path) -> None:
    """Rows that nobody reads are not loaded: a gigabyte for which the file system has only reserved space."""
    offsets = file.lay_out(path := tmp_path / "f", (torch.zeros(1, 2**20),), 256, {"key": "k"})
    file.write_rows(path, iter([(7, (torch.ones(1, 2**20),))]), offsets)
    before = int(Path("/proc/self/statm").read_text().split()[1])
    found = file.read(path, "k")
    assert found is not None
    assert found[0][[7]].sum() == 2**20
    assert found[0][[8]].sum() == 0
    assert (int(Path("/proc/self/statm").read_text().split()[1]) - before) * os.sysconf("SC_PAGE_SIZE") < 100 * 2**20
    assert file.read(path, "other") is None
