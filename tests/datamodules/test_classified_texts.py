"""Items and checks of texts with classes or numbers."""

from pathlib import Path

import pytest
import torch

from datamodules import TextTable
from tests.support.texts import pair_tokenizer, ready, tokenizer, write_jsonl


@pytest.fixture
def data(tmp_path: Path) -> TextTable:
    rows = [{"text": f"the cat {number} sat", "label": "ab"[number % 2]} for number in range(5)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    return TextTable(str(tmp_path), val="none", max_length=32, batch_size=5)


def test_items(data: TextTable) -> None:
    made = tokenizer(pad_token="<pad>")
    inputs, target = ready(data, made).splits["train"][3]
    assert inputs["input_ids"].tolist() == made("the cat 3 sat")["input_ids"], "classifiers get no end of a text"
    assert target == 1
    (batch,) = data.train_dataloader()
    assert batch.inputs["attention_mask"][:, 0].all(), "padding is behind texts by default"
    assert sorted(batch.targets.tolist()) == [0, 0, 0, 1, 1]


def test_texts_alone_have_one_type_of_tokens(data: TextTable) -> None:
    inputs, _ = ready(data, pair_tokenizer()).splits["train"][0]
    assert inputs.keys() == {"input_ids", "attention_mask", "token_type_ids"}
    assert not inputs["token_type_ids"].any()


def test_scoring_batches(data: TextTable) -> None:
    first, second = ready(data).score_batches(3)
    assert first.targets.tolist() == [0, 1, 0]
    assert second.targets.tolist() == [1, 0]
    assert torch.equal(
        first.inputs["attention_mask"].sum(1), torch.tensor([len(tokenizer()("the cat 0 sat").input_ids)] * 3)
    )
