"""Numbers of a CSV file."""

from pathlib import Path

import pytest

from datamodules.number_file import NumberFile
from tests.support.tables import write_tables


def test_columns(tmp_path: Path) -> None:
    write_tables(tmp_path, {"train": ["1.5,-3", "2,1e2"]}, "mass,height")
    data = NumberFile(root=str(tmp_path), label_columns=["height", "mass"])
    samples = data.samples("train")
    assert samples is not None
    assert (data.target_names, data.num_targets) == (["height", "mass"], 2)
    assert samples.labels.tolist() == [[-3, 1.5], [100, 2]] == data.target_key(samples)


@pytest.mark.parametrize("cell", ["", "big", "nan", "inf"])
def test_mistakes(tmp_path: Path, cell: str) -> None:
    write_tables(tmp_path, {"train": ["1", cell]}, "target")
    with pytest.raises(ValueError, match=rf"line 3: found '{cell}'; expected a number"):
        NumberFile(root=str(tmp_path)).samples("train")
    with pytest.raises(ValueError, match="at least one column"):
        NumberFile(root=str(tmp_path), label_columns=[])
