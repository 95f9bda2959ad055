"""Classes of a CSV file."""

from pathlib import Path

import pytest

from datamodules.class_file import ClassFile
from tests.support.tables import write_tables


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [(["dog", "cat"], ["bird", "cat", "dog"], [2, 1]), (["10", "2"], ["2", "3", "10"], [2, 0])],
)
def test_classes(tmp_path: Path, labels: list[str], names: list[str], numbers: list[int]) -> None:
    """Words by the alphabet, numbers by their size; of all files."""
    third = next(name for name in names if name not in labels)
    write_tables(tmp_path, {"train": labels, "test": [third]}, "label")
    data = ClassFile(root=str(tmp_path))
    assert (data.class_names, data.num_classes) == (names, 3)
    samples = data.samples("train")
    assert samples is not None
    assert samples.labels.tolist() == numbers


def test_other_columns(tmp_path: Path) -> None:
    write_tables(tmp_path, {"train": ["1,cat", "2,dog"]}, "number,kind")
    assert ClassFile(root=str(tmp_path), label_column="kind", image_column="path").class_names == ["cat", "dog"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cat", "3"], r"line 2: found 'cat'; expected a number, as '3' in line 3 of train.csv"),
        (["cat", ""], r"line 3: found ''; expected a class"),
        (["cat", "cat"], r"all images have the class 'cat'; expected at least 2 classes"),
    ],
)
def test_mistakes(tmp_path: Path, labels: list[str], message: str) -> None:
    write_tables(tmp_path, {"train": labels}, "label")
    with pytest.raises(ValueError, match=message):
        ClassFile(root=str(tmp_path)).samples("train")


def test_missing_column(tmp_path: Path) -> None:
    write_tables(tmp_path, {"train": ["cat", "dog"]}, "kind")
    with pytest.raises(ValueError, match=r"has no column 'label': found path, kind; pass --data.label_column"):
        ClassFile(root=str(tmp_path)).samples("train")
