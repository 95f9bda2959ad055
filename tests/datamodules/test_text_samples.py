"""Rows of several files, and samples of texts."""

import torch

from datamodules.text_samples import LabelledTexts, Part, Rows, Text, Texts

PARTS = [
    Part("a.jsonl", "line", [1, 4], {"text": ["one", "two"]}),
    Part("b.jsonl", "line", [2], {"text": ["three"]}),
    Part("c.parquet", "row", range(1, 3), {"text": ["four", "five"]}),
]


def test_rows_know_their_files() -> None:
    rows = Rows(PARTS)
    assert len(rows) == 5
    assert rows.source == "a.jsonl"
    assert rows.columns == {"text": ["one", "two", "three", "four", "five"]}
    places = ["a.jsonl, line 1", "a.jsonl, line 4", "b.jsonl, line 2", "c.parquet, row 1", "c.parquet, row 2"]
    assert [rows.place(index) for index in range(5)] == places


def test_samples() -> None:
    texts = Texts(Rows(PARTS), [("", text) for text in ("one", "two", "three", "four", "five")])
    kept = texts.keep([4, 1, 2]).keep([1, 0])
    assert [kept[index] for index in range(len(kept))] == [Text("", "two"), Text("", "five")]
    assert [kept.name(index) for index in range(2)] == ["a.jsonl, line 4", "c.parquet, row 2"]
    assert kept.stored(0) != kept.stored(1)
    assert kept.stored(0) == texts.stored(1)


def test_labelled_samples() -> None:
    pairs = [("one", "1"), ("two", "2"), ("three", "3")]
    texts = LabelledTexts(Rows(PARTS[:2]), pairs, torch.tensor([0, 2, 1]))
    kept = texts.keep([2, 1])
    assert kept[0] == Text("three", "3", 1)
    assert kept.labels.tolist() == [1, 2]
    assert kept.name(1) == "a.jsonl, line 4"
    assert LabelledTexts(Rows(PARTS[:1]), pairs[:2], torch.tensor([0.5, 2.0]))[0].target == 0.5
    assert isinstance(kept[0].target, int)
    relabelled = LabelledTexts(Rows(PARTS[:2]), pairs, torch.tensor([1, 2, 1]))
    assert relabelled.stored(0) != texts.stored(0)
    assert relabelled.stored(1) == texts.stored(1)
