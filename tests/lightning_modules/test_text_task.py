"""What tasks on text share."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from lightning_modules.batch import repeated
from tests.lightning_modules.test_language_modeling import model
from tests.support.command_line import Answer, answer_of, folders
from tests.support.text import tokenizer
from tests.support.text_runs import run_options, write_model

pytest.importorskip("transformers")
TASKS = ("language_modeling", "text_classification", "text_regression")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    return partial(answer_of, capsys)


@pytest.mark.parametrize("task", TASKS)
def test_run_from_the_command_line(task: str, call: Callable[..., Answer], tmp_path: Path) -> None:
    """Fit, test, files of the run, and a resumed fit that ends bit for bit."""
    fit = ["fit", "--method=lora", "--model.lora_dropout=0.2", "--trainer.max_epochs=2", *run_options(task, tmp_path)]
    fit += ["--checkpoint.save_top_k=-1", "--checkpoint.filename={epoch}"]
    answer = call(*fit, "--test_after_fit=true", "--run_root", tmp_path / "whole")
    assert answer.code == 0, answer.err
    (whole,) = folders(tmp_path / "whole")
    assert {"metrics.csv", "curves.png", "result.json", "config.yaml", "adapter"} <= {
        file.name for file in whole.iterdir()
    }
    assert (whole / "samples.jsonl").exists() == (task == "language_modeling")
    result = json.loads((whole / "result.json").read_text())
    assert result["texts"] == {"train": 12, "val": 5, "test": 5}
    assert f"test/{result['metric']['name']}" in result
    unit = "tokens" if task == "language_modeling" else "texts"
    assert result[f"cost/{unit}_per_s"] > 0
    card: Any = ModelCard.load(whole / "adapter/README.md")
    assert "transformers" in card.data.tags
    answer = call(*fit, "--ckpt_path", whole / "checkpoints/epoch=0.ckpt", "--run_root", tmp_path / "resumed")
    assert answer.code == 0, answer.err
    (resumed,) = folders(tmp_path / "resumed")
    states = [torch.load(folder / "checkpoints/last.ckpt", weights_only=True) for folder in (whole, resumed)]
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(states[0][part], states[1][part], rtol=0, atol=0)
    predict = ["predict", "--ckpt_path", whole / "adapter", *run_options(task, tmp_path)[2:]]
    answer = call(*predict, "--run_root", tmp_path / "predicted")
    if task == "language_modeling":
        assert (answer.code, "run test, which writes perplexity" in answer.err) == (1, True)
        return
    assert answer.code == 0, answer.err
    (table,) = (tmp_path / "predicted").glob("*/*/*/predictions.csv")
    assert len(table.read_text().splitlines()) == 1 + 5


def test_images_have_no_prompts(call: Callable[..., Answer], tmp_path: Path) -> None:
    """An option for language models is refused by others."""
    fit = ["fit", "--method=lora", *run_options("text_classification", tmp_path), "--run_root", tmp_path / "runs"]
    answer = call(*fit, "--prompts=[hello]")
    assert answer.code == 1
    assert "prompts: LoRATextClassification writes no text" in answer.err


def test_more_tokens_than_the_model_has(call: Callable[..., Answer], tmp_path: Path) -> None:
    """Refused before training, with both numbers."""
    write_model(tmp_path / "llama", "llama", tokens=128)
    answer = call("fit", "--method=lora", *run_options("language_modeling", tmp_path), "--run_root", tmp_path / "runs")
    assert answer.code == 1
    assert "has 300 tokens, and the model knows 128" in answer.err
    assert not (tmp_path / "runs").exists() or not folders(tmp_path / "runs")


def test_a_folder_without_weights(call: Callable[..., Answer], tmp_path: Path) -> None:
    options = run_options("language_modeling", tmp_path)
    (tmp_path / "llama/model.safetensors").unlink()
    answer = call("fit", "--method=lora", *options, "--run_root", tmp_path / "runs")
    assert answer.code == 1
    assert "could not be read" in answer.err
    assert "Nothing was trained" in answer.err


def test_weights_of_another_config(call: Callable[..., Answer], tmp_path: Path) -> None:
    options = [*run_options("language_modeling", tmp_path), "--model.backbone_args={intermediate_size: 96}"]
    answer = call("fit", "--method=lora", *options, "--run_root", tmp_path / "runs")
    assert answer.code == 1
    assert "the files lack 6 of the weights of LlamaForCausalLM" in answer.err


def test_a_damaged_gguf_file(call: Callable[..., Answer], tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(64))
    options = [*run_options("language_modeling", tmp_path), f"--model.backbone={tmp_path / 'model.gguf'}"]
    answer = call("fit", "--method=lora", *options, "--run_root", tmp_path / "runs")
    assert answer.code == 1
    assert "could not be read" in answer.err


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
