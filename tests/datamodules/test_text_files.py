"""Which file is which split, and held-out rows."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from datamodules import TextDataset
from datamodules.text_files import split_names
from tests.support.texts import write_jsonl

TEXTS = [{"text": f"text {number}"} for number in range(20)]


def found(data: TextDataset) -> dict[str, list[str]]:
    every = {split: data.samples(split) for split in ("train", "val", "test")}  # type: ignore[arg-type]
    return {
        split: [samples[index].second for index in range(len(samples))]
        for split, samples in every.items()
        if samples is not None
    }


@pytest.mark.parametrize(
    ("files", "options", "lengths"),
    [
        (("train.jsonl", "validation.json", "test.jsonl"), {}, {"train": 20, "val": 20, "test": 20}),
        (("train.jsonl", "dev.jsonl"), {}, {"train": 20, "val": 20}),
        (("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"), {"val": "none"}, {"train": 40}),
        (("mine.jsonl",), {"val_rows": 5}, {"train": 15, "val": 5}),
        (("mine.jsonl", "yours.jsonl"), {"train": "mine.jsonl", "val": "yours.jsonl"}, {"train": 20, "val": 20}),
        (("train.jsonl", "test.jsonl"), {"val_rows": 0}, {"train": 20, "test": 20}),
        (("train.jsonl", "test.jsonl"), {"test": "none", "val": "none"}, {"train": 20}),
        (("test.jsonl",), {}, {"test": 20}),
    ],
    ids=str,
)
def test_files_of_splits(files: Any, options: Any, lengths: dict[str, int], tmp_path: Path) -> None:
    for name in files:
        write_jsonl(tmp_path / name, TEXTS)
    (tmp_path / "README.md").write_text("notes")
    (tmp_path / "info.json").write_text("{}")
    texts = found(TextDataset(str(tmp_path), **options))
    assert {split: len(rows) for split, rows in texts.items()} == lengths


def test_one_file(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "mine.jsonl", TEXTS)
    write_jsonl(tmp_path / "test.jsonl", TEXTS)
    assert {s: len(t) for s, t in found(TextDataset(str(file), val_rows=4)).items()} == {"train": 16, "val": 4}
    texts = found(TextDataset(str(file), val="none", test="test.jsonl"))
    assert {split: len(rows) for split, rows in texts.items()} == {"train": 20, "test": 20}


def test_held_out_rows_are_those_of_the_library(tmp_path: Path) -> None:
    """The recipe of VeLoRA holds rows out by ``train_test_split`` with the seed 42."""
    file = write_jsonl(tmp_path / "mine.jsonl", TEXTS)
    parts = datasets.Dataset.from_list(TEXTS).train_test_split(test_size=6, shuffle=True, seed=42)
    texts = found(TextDataset(str(file), val_rows=6))
    assert texts["val"] == parts["test"]["text"][:]
    assert texts["train"] == parts["train"]["text"][:]
    assert found(TextDataset(str(file), val_rows=6)) == texts
    assert found(TextDataset(str(file), val_rows=6, val_seed=1)) != texts


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "too many held out": ({"train": "a.jsonl"}, r"has 20 training rows and no validation rows, so that 1024 rows"),
    "missing file": ({"train": "c.jsonl"}, r"data.train='c.jsonl': no such file in \S+; found a.jsonl, b.jsonl"),
    "which file": ({}, r"has no train.jsonl, train.csv or the like: found a.jsonl, b.jsonl. Pass --data.train NAME"),
    "wrong column": ({"train": "a.jsonl", "text_column": "content"}, r"a.jsonl has no column 'content': found text; p"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str, tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write_jsonl(tmp_path / name, TEXTS)
    options, message = MISTAKES[mistake]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        TextDataset(str(tmp_path), **options).samples("train")


def test_roots_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "my_texts").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no such folder. Nearest: .*my_texts"):
        TextDataset(str(tmp_path / "my_text")).samples("train")
    with pytest.raises(ValueError, match=r"has no train.jsonl, train.csv or the like: found no text file"):
        TextDataset(str(tmp_path / "my_texts")).samples("train")
    with pytest.raises(ValueError, match=r"data.root=' ': expected"):
        TextDataset(" ")


def test_two_kinds_of_one_split(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", TEXTS)
    (tmp_path / "train.txt").write_text("a\n")
    with pytest.raises(ValueError, match=r"train.jsonl, train.txt: which one is it"):
        TextDataset(str(tmp_path)).samples("train")


@pytest.mark.parametrize("value", ["", "  ", None, 3, ["a"]])
def test_rows_without_text(value: Any, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [*TEXTS[:2], {"text": value}])
    message = "line 3: text is empty" if value in ("", "  ", None) else "line 3: text is .*; expected a text"
    with pytest.raises(ValueError, match=rf"a\.jsonl, {message}"):
        TextDataset(str(file), val="none").samples("train")


def test_tables_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(*args: Any) -> datasets.DatasetDict:
        asked.append(args)
        table = datasets.Dataset.from_list(TEXTS)
        return datasets.DatasetDict({"train": table, "validation": table.select([3]), "other": table.select([4])})

    monkeypatch.setattr(datasets, "load_dataset", load)
    texts = found(TextDataset("some/texts", subset="en"))
    assert asked == [("some/texts", "en")]
    assert {split: len(rows) for split, rows in texts.items()} == {"train": 20, "val": 1}
    assert found(TextDataset("some/texts", test="other"))["test"] == ["text 4"]
    samples = TextDataset("some/texts").samples("train")
    assert samples is not None
    assert samples.name(2) == "some/texts train, row 3"


def test_splits_of_the_hub() -> None:
    assert split_names("x", ["train", "dev"], {"train": None, "val": None, "test": None}) == {
        "train": "train",
        "val": "dev",
    }
    with pytest.raises(ValueError, match=r"data.val='gone': x has the splits train"):
        split_names("x", ["train"], {"train": None, "val": "gone", "test": None})
    with pytest.raises(ValueError, match=r"x has no train split: found mine. Pass --data.train NAME"):
        split_names("x", ["mine"], {"train": None, "val": None, "test": None})
