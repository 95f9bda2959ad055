"""CSV files of targets."""

from pathlib import Path

import pytest

from datamodules.class_file import ClassFile
from datamodules.label_files import ValuedFiles, read_table
from datamodules.number_file import NumberFile
from tests.support.tables import write_tables


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n", "expected names of columns in the first line"),
        ("path,path\na,b\n", "each name of a column once, found path, path"),
        ("path,label\na.png,cat\nb.png\n", "line 3: 1 cells; expected 2"),
    ],
)
def test_tables(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "train.csv")


def test_quotes_tabs_and_the_mark_of_excel(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('\ufeffpath, label\n"a, b.png", cat\n', encoding="utf-8")
    assert read_table(tmp_path / "a.csv").columns == {"path": ["a, b.png"], "label": ["cat"]}
    (tmp_path / "a.tsv").write_text("path\tlabel\na, b.png\tcat\n")
    assert read_table(tmp_path / "a.tsv").columns == {"path": ["a, b.png"], "label": ["cat"]}


def test_splits(tmp_path: Path) -> None:
    write_tables(tmp_path, {"train": ["cat", "dog"], "test": ["dog"]}, "label")
    data = ClassFile(root=str(tmp_path))
    assert [len(data.samples(split) or ()) for split in ("train", "val", "test")] == [2, 0, 1]  # type: ignore[arg-type]
    assert not data.validates
    assert len(ClassFile(root=str(tmp_path), val_file="test.csv").samples("val") or ()) == 1


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train.csv is missing"):
        ClassFile(root=str(tmp_path)).samples("train")
    write_tables(tmp_path, {"train": ["cat", "dog"]}, "label")
    with pytest.raises(ValueError, match=r"has no column 'photo': found path, label; pass --data.image_column"):
        ClassFile(root=str(tmp_path), image_column="photo").samples("train")
    (tmp_path / "train.csv").write_text("path,label\ntrain0.png,cat\n,dog\n")
    with pytest.raises(ValueError, match=r"line 3: found ''; expected the path of an image"):
        ClassFile(root=str(tmp_path)).samples("train")
    (tmp_path / "train.csv").write_text("path,label\ntrain0.png,cat\n../b.png,dog\n")
    with pytest.raises(ValueError, match=r"lies outside"):
        ClassFile(root=str(tmp_path)).samples("train")


def test_values_of_files(tmp_path: Path) -> None:
    write_tables(tmp_path, {"train": ["1.5", "2.5"]}, "target")
    samples = NumberFile(root=str(tmp_path)).samples("train")
    assert isinstance(samples, ValuedFiles)
    assert samples.target(1).tolist() == [2.5]
    assert samples.keep([1]).labels.tolist() == [[2.5]]
    assert samples.stored(0) != samples.stored(1)
    assert samples.stored(0).startswith(b"[1.5] ")
