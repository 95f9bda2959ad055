"""Texts with classes or numbers in files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules import TextTable
from tests.support.texts import pair_tokenizer, ready, text_task, write_jsonl


def table(folder: Path, *labels: Any, **options: Any) -> TextTable:
    rows = [{"text": f"the cat {number}", "label": label} for number, label in enumerate(labels)]
    write_jsonl(folder / "train.jsonl", rows)
    return TextTable(str(folder), **{"val": "none", "max_length": 32, "batch_size": 2} | options)


def labels(data: TextTable, split: Any = "train") -> list[Any]:
    samples = data.samples(split)
    assert samples is not None
    return samples.labels.tolist()


@pytest.mark.parametrize(
    ("given", "options", "names", "expected"),
    [
        (["b", "a", "b"], {}, ["a", "b"], [1, 0, 1]),
        ([10, 2, 10], {}, ["2", "10"], [1, 0, 1]),
        (["10", "2", "2"], {}, ["2", "10"], [1, 0, 0]),
        ([True, False], {}, ["False", "True"], [1, 0]),
        ([1.5, 2, "-3e1"], {}, [], [1.5, 2.0, -30.0]),
        ([1, 2, 2], {"label_type": "number"}, [], [1.0, 2.0, 2.0]),
        (["1.5", "2.5"], {"label_type": "class"}, ["1.5", "2.5"], [0, 1]),
    ],
    ids=str,
)
def test_labels(given: Any, options: Any, names: list[str], expected: list[float], tmp_path: Path) -> None:
    data = table(tmp_path, *given, **options)
    assert data.class_names == names
    assert data.num_classes == (len(names) or 1)
    assert labels(data) == expected
    ready_data = ready_as(data)
    batch = next(iter(ready_data.train_dataloader()))
    assert batch.targets.dtype == (torch.int64 if names else torch.float32)
    assert batch.targets.shape == (2,)
    assert ready_data.target_key(data.samples("train")) == expected


def ready_as(data: TextTable, **options: Any) -> Any:
    data.targets = "labels" if data.class_names else "numbers"  # by which the task of this test is made
    return ready(data, **options)


def test_task_of_the_other_kind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="TextTable has numbers of texts, and SimpleNamespace reads labels of texts"):
        table(tmp_path, 1.5, 2.5).follow(text_task("labels"))


def test_pairs(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text('a\tb\tkind\nthe cat\tthe mat\tx\n"sat\ton\ty\n')
    options: dict[str, Any] = {"text_columns": ["a", "b"], "label_column": "kind", "quoted": False, "val": "none"}
    data = TextTable(str(tmp_path), max_length=64, batch_size=2, **options)
    samples = data.samples("train")
    assert samples is not None
    assert [samples[0][:2], samples[1][:2]] == [("the cat", "the mat"), ('"sat', "on")]
    (batch,) = ready(data, pair_tokenizer()).train_dataloader()
    assert batch.inputs["token_type_ids"].shape == batch.inputs["input_ids"].shape
    assert batch.inputs["token_type_ids"].sum() > 0
    assert data.target_names == ["kind"]


def test_held_out_share(tmp_path: Path) -> None:
    data = table(tmp_path, *"ab" * 10, val=None, val_fraction=0.25)
    assert (len(labels(data)), len(labels(data, "val"))) == (15, 5)
    data = table(tmp_path, "a", "b", val=None, val_fraction=0.9)
    with pytest.raises(
        ValueError, match=r"2 rows cannot be held out: pass a smaller --data.val_fraction, or --data.va"
    ):
        data.samples("train")
    assert table(tmp_path, "a", "b", val=None, val_fraction=0.0).samples("val") is None


def test_classes_of_all_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = table(tmp_path, "b", "c", "b", "c", val=None)
    write_jsonl(tmp_path / "val.jsonl", [{"text": "the cat", "label": "a"}])
    assert data.class_names == ["a", "b", "c"]
    ready(data)
    assert "note: 1 of 3 classes have no training text" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (["a", ""], {}, "train.jsonl, line 2: label is ''; expected a class or a number"),
        (["a", None], {}, "line 2: label is 'None'; expected a class or a number"),
        (["a", ["b"]], {}, r"line 2: label is \"\['b'\]\"; expected a class or a number"),
        (["1", "b"], {}, "line 2: label is 'b'; expected a whole number, as other rows have"),
        ([1.5, "b"], {"label_type": "number"}, "line 2: label is 'b'; expected a number"),
        (["1.5", "1e999"], {}, "line 2: label is '1e999'; expected a number"),
        (["a", "a"], {}, "all texts have the class 'a'; expected at least 2 classes"),
        (["a", "b"], {"label_column": "kind"}, "has no column 'kind': found text, label; pass --data.label_column"),
        (["a", "b"], {"text_columns": ["body"]}, "has no column 'body': found text, label; pass --data.text_columns"),
        (["a", "b"], {"text_columns": []}, "expected the name of one column, or of two"),
        (["a", "b"], {"val_fraction": 1.0}, "val_fraction=1.0: expected a share"),
    ],
    ids=str,
)
def test_mistakes(given: list[Any], options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        table(tmp_path, *given, **options).samples("train")


def test_classes_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    label = datasets.ClassLabel(names=["no", "yes", "maybe"])
    features = datasets.Features({"text": datasets.Value("string"), "label": label})
    made = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, 2]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args: {"train": made})
    data = TextTable("some/texts", val="none")
    assert data.class_names == ["maybe", "no", "yes"]
    assert labels(data) == [2, 1, 0]


def test_one_list_of_objects(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(json.dumps([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]))
    assert labels(TextTable(str(tmp_path), val="none")) == [0, 1]
