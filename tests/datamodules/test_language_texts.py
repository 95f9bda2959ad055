"""Tokens and labels of language modelling."""

from pathlib import Path
from typing import Any

import pytest

from datamodules import InstructionDataset, TextDataset
from datamodules.language_texts import common
from tests.support.texts import pair_tokenizer, ready, text_task, tokenizer, write_jsonl

END = 2


def texts(tmp_path: Path, *given: str, made: Any = None, **options: Any) -> Any:
    write_jsonl(tmp_path / "train.jsonl", [{"text": text} for text in given])
    return ready(TextDataset(str(tmp_path), val="none", batch_size=1, **{"max_length": 64} | options), made)


def test_labels_are_the_tokens(tmp_path: Path) -> None:
    inputs, labels = texts(tmp_path, "the cat sat").splits["train"][0]
    assert labels.tolist() == inputs["input_ids"].tolist() == [*tokenizer()("the cat sat")["input_ids"], END]
    assert inputs["attention_mask"].tolist() == [1] * len(labels)


def test_end_of_a_text(tmp_path: Path) -> None:
    def last(length: int, made: Any = None, **options: Any) -> list[int]:
        data = texts(tmp_path, "cat " * 30, made=made, max_length=length, **options)
        return data.splits["train"][0][0]["input_ids"].tolist()

    assert last(64)[-1] == END
    assert END not in last(10), "a text that was cut has no end"
    assert END not in last(64, append_eos=False)
    assert END not in last(64, tokenizer(eos_token=None))
    added = last(64, pair_tokenizer())  # adds the end itself
    assert added[-1] == END
    assert added[-2] != END


def test_text_of_one_token(tmp_path: Path) -> None:
    assert texts(tmp_path, "cat", "the")
    with pytest.raises(ValueError, match=r"train.jsonl, line 2 cannot be read: it has 1 tokens, so that none follows"):
        texts(tmp_path, "the cat", "c", append_eos=False)
    with pytest.raises(ValueError, match="line 1 cannot be read: it has 1 tokens"):
        texts(tmp_path, "c", made=tokenizer(eos_token=None))


def row(count: int, output: str = "mat") -> dict[str, str]:
    return {"instruction": "cat " * count, "output": output}


def test_masked_prompts(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [row(2, "the mat")])
    options: dict[str, Any] = {"val": "none", "batch_size": 1, "max_length": 256}
    plain = ready(InstructionDataset(str(tmp_path), **options), context=256)
    masked = ready(InstructionDataset(str(tmp_path), mask_prompt=True, **options), context=256)
    inputs, labels = masked.splits["train"][0]
    ids, kept = inputs["input_ids"].tolist(), labels.tolist()
    assert ids == plain.splits["train"][0][1].tolist()
    start = next(place for place, label in enumerate(kept) if label != -100)
    assert kept == [-100] * start + ids[start:]
    made = tokenizer()
    assert made.decode(ids[start:]) == "the mat</s>"
    assert made.decode(ids[:start]).endswith("### Response:\n")
    assert plain.description()["mask_prompt"] is False
    assert plain.fingerprint("train") != masked.fingerprint("train")


def test_prompt_that_fills_all_tokens(tmp_path: Path) -> None:
    """Each row has a loss, and a row that would have none is named before the first step."""
    write_jsonl(tmp_path / "train.jsonl", [row(1), row(60)])
    data = InstructionDataset(str(tmp_path), val="none", batch_size=1, max_length=90)
    ready(data, context=256)  # prompts have a loss
    data = InstructionDataset(str(tmp_path), val="none", batch_size=1, max_length=90, mask_prompt=True)
    with pytest.raises(ValueError, match=r"train.jsonl, line 2 cannot be read: its prompt fills all of the 90 tokens"):
        ready(data, context=256)


def test_special_tokens_before_a_prompt(tmp_path: Path) -> None:
    """A prompt alone ends with a token that the whole text has not there."""
    write_jsonl(tmp_path / "train.jsonl", [row(2)])
    data = InstructionDataset(str(tmp_path), val="none", batch_size=1, max_length=256, mask_prompt=True)
    inputs, labels = ready(data, pair_tokenizer(), 256).splits["train"][0]
    assert inputs["input_ids"][0] == 1
    assert tokenizer().decode(labels[labels != -100]) == "mat</s>"
    assert inputs.keys() == {"input_ids", "attention_mask"}


def test_common_start() -> None:
    assert common([1, 2, 3], [1, 2, 4, 5]) == 2
    assert common([1, 2], [1, 2, 4]) == 2
    assert common([], [1]) == 0


def test_no_batch_without_a_label(tmp_path: Path) -> None:
    data = texts(tmp_path, *(f"the cat {number}" for number in range(7)))
    data.trainer = None
    data.configure(text_task().input_config)
    for batch in data.train_dataloader():
        assert (batch.targets[:, 1:] != -100).any(1).all()
