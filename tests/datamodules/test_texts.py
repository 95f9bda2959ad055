"""Tokens, padding and batches of texts."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules import InstructionDataset, TextDataset
from datamodules.texts import padding_token, tokenizer_digest
from tests.support.texts import pair_tokenizer, ready, text_task, tokenizer, write_jsonl

TEXTS = ["the cat", "the cat sat on the mat", "What does json.dumps do? " * 3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        write_jsonl(tmp_path / f"{split}.jsonl", [{"text": text} for text in TEXTS])
    return tmp_path


def dataset(folder: Path, **options: Any) -> TextDataset:
    return TextDataset(str(folder), **{"max_length": 64, "batch_size": 3, "drop_last": False} | options)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(folder: Path, side: Any) -> None:
    data = ready(dataset(folder, padding_side=side), tokenizer(pad_token="<pad>"))
    items = [data.splits["val"][index] for index in range(3)]
    (batch,) = data.val_dataloader()
    width = batch.inputs["input_ids"].shape[1]
    lengths = [len(inputs["input_ids"]) for inputs, _ in items]
    assert len({*lengths}) == 3
    assert width % 8 == 0
    assert 0 <= width - max(lengths) < 8
    for row, (inputs, labels) in enumerate(items):
        length = lengths[row]
        text = slice(width - length, None) if side == "left" else slice(length)
        rest = slice(width - length) if side == "left" else slice(length, None)
        assert torch.equal(batch.inputs["input_ids"][row, text], inputs["input_ids"])
        assert torch.equal(batch.targets[row, text], labels)
        assert batch.inputs["attention_mask"][row, text].all()
        assert not batch.inputs["attention_mask"][row, rest].any()
        assert (batch.inputs["input_ids"][row, rest] == 3).all()
        assert (batch.targets[row, rest] == -100).all()
    assert {tensor.dtype for tensor in (*batch.inputs.values(), batch.targets)} == {torch.int64}
    assert batch.valid.tolist() == [True] * 3


def test_padding_stays_within_the_context(folder: Path) -> None:
    """Positions beyond the model's table would be an error in its forward pass."""
    data = ready(dataset(folder, max_length=30), context=30)
    (batch,) = data.train_dataloader()
    assert batch.inputs["input_ids"].shape == (3, 30)
    data = ready(dataset(folder, max_length=30, pad_to_multiple=16), context=40)
    (batch,) = data.train_dataloader()
    assert batch.inputs["input_ids"].shape == (3, 32)


def test_texts_are_cut(folder: Path) -> None:
    data = ready(dataset(folder, max_length=5))
    assert [len(data.splits["train"][index][0]["input_ids"]) for index in range(3)] == [3, 5, 5]


def test_a_text_longer_than_the_context_is_refused(folder: Path) -> None:
    data = dataset(folder, max_length=65)
    with pytest.raises(
        ValueError, match=r"max_length=65 is larger than the 64 tokens .*--data.max_length 64, or a mod"
    ):
        data.follow(text_task())


def test_types_of_tokens_of_pairs() -> None:
    data = dataset(Path("."))
    data.follow(text_task(made=pair_tokenizer()))
    inputs = data.tokens("the cat", "the mat")
    assert inputs["token_type_ids"] == sorted(inputs["token_type_ids"])
    assert {*inputs["token_type_ids"]} == {0, 1}
    data.follow(text_task(made=tokenizer()))
    assert list(data.tokens("the cat")) == ["input_ids", "attention_mask"]


@pytest.mark.parametrize(
    ("special", "token"),
    [
        ({"pad_token": "<pad>"}, "<pad>"),
        ({}, "<unk>"),
        ({"pad_token": "</s>"}, "<unk>"),  # padding is not the end of a text where another token can pad
        ({"pad_token": "</s>", "unk_token": "</s>"}, "</s>"),
        ({"eos_token": None}, "<unk>"),
    ],
    ids=str,
)
def test_padding_token(special: dict[str, Any], token: str) -> None:
    made = tokenizer(**special)
    data = TextDataset(".", max_length=8)
    data.follow(text_task(made=made))
    assert made.pad_token == token, "the task reads it there"
    assert data.pad_values["input_ids"] == made.convert_tokens_to_ids(token)


def test_padding_token_that_the_user_names() -> None:
    assert padding_token(tokenizer(), "<pad>") == "<pad>"
    assert padding_token(tokenizer(), "</s>") == "</s>"
    assert padding_token(tokenizer(), "<unk>") == "<unk>"
    for unknown in ("<unk>", None):
        with pytest.raises(ValueError, match="pad_token='no such': the tokenizer has no such token"):
            padding_token(tokenizer(unk_token=unknown), "no such")
    with pytest.raises(
        ValueError, match=r"no token for padding besides the end of a text, '</s>': pass --data.pad_tok"
    ):
        padding_token(tokenizer(unk_token="</s>"), None)


def test_similar_lengths_in_a_batch(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text": "cat " * (1 + index % 7)} for index in range(70)])
    (tmp_path / "val.txt").write_text("the cat\n")

    def padding(**options: Any) -> int:
        data = ready(TextDataset(str(tmp_path), max_length=64, batch_size=7, pad_to_multiple=1, **options))
        return sum(int((batch.inputs["attention_mask"] == 0).sum()) for batch in data.train_dataloader())

    assert padding(group_by_length=True) < 0.5 * padding()


def test_other_tasks_and_other_data_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"TextDataset has tokens that follow, and SimpleNamespace reads labels of te"):
        dataset(folder).follow(text_task("labels"))


@pytest.mark.parametrize("option", [{"max_length": 1}, {"pad_to_multiple": 0}, {"val_rows": -1}, {"val_seed": -1}])
def test_options_out_of_range(option: dict[str, int]) -> None:
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=f"{name}={value}: expected"):
        InstructionDataset(".", **option)  # type: ignore[arg-type]


def test_fingerprints(folder: Path) -> None:
    def both(made: Any = None, **options: Any) -> tuple[str, str]:
        data = ready(dataset(folder, **options), made)
        return data.fingerprint("train"), data.score_fingerprint()

    first = both()
    assert both() == first
    others = [both(max_length=10), both(padding_side="right"), both(append_eos=False), both(tokenizer(eos_token="<s>"))]
    assert all(not {*other} & {*first} for other in others)
    assert tokenizer_digest(tokenizer()) != tokenizer_digest(tokenizer(eos_token="<s>"))


def test_workers_make_the_same_batches(folder: Path) -> None:
    data = ready(dataset(folder, num_workers=2))
    (batch,), (alone,) = data.val_dataloader(), ready(dataset(folder, num_workers=0)).val_dataloader()
    assert torch.equal(batch.targets, alone.targets)
    pickle.dumps(data.splits["train"])
    assert ready(dataset(folder)).val_dataloader().num_workers == 0


def test_facts(folder: Path) -> None:
    (folder / "info.json").write_text('{"python": "3.11.7"}')
    data = ready(dataset(folder))
    facts = data.description()
    assert facts["texts"] == {"train": 3, "val": 3}
    assert (facts["max_length"], facts["padding_side"]) == (64, "left")
    assert facts["data_info"] == {"python": "3.11.7"}
    (folder / "info.json").write_text("{")
    assert "data_info" not in data.description()
