"""What tasks on text share."""

from pathlib import Path

import pytest
import torch

from lightning_modules.batch import repeated
from tests.lightning_modules.test_language_modeling import model
from tests.support.text import tokenizer

pytest.importorskip("transformers")


def test_the_tokenizer_is_read_when_it_is_needed(tmp_path: Path) -> None:
    task = model("lora", tokenizer=str(tmp_path / "later"))
    task.configure_model()
    tokenizer().save_pretrained(tmp_path / "later")
    config = task.input_config
    assert config["context"] == 64
    assert config["tokenizer"] is task.tokenizer
    assert task.tokenizer.pad_token == "<pad>"


def test_example_text() -> None:
    task = model("lora")
    inputs = task.example_batch().inputs
    assert inputs["input_ids"].shape == (1, 64)
    both = repeated(inputs, 2)
    assert both["input_ids"].shape == (2, 64)
    assert torch.equal(task(both)[:1], task(both)[1:])


def test_no_tokenizer_names_the_remedy() -> None:
    with pytest.raises(FileNotFoundError, match="could not be read"):
        _ = model("lora").tokenizer
