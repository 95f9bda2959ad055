"""Texts behind fixed prompts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from callbacks.text_samples import TextSamples, continued
from datamodules.instructions import InstructionDataset
from tests.lightning_modules.test_language_modeling import model
from tests.support.ranks import TwoRanks
from tests.support.text_runs import write_model, write_rows

pytest.importorskip("transformers")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "llama", "llama")
    write_rows(tmp_path / "rows", "instructions")
    return tmp_path


def ready(folder: Path, method: str = "lora", **options: Any) -> Any:
    task = model(method, tokenizer=str(folder / "llama"), **options)
    task.backbone_name, task.pretrained, task.backbone_args = str(folder / "llama"), True, {}
    task.build()
    return task


def data(folder: Path) -> InstructionDataset:
    return InstructionDataset(root=str(folder / "rows"), batch_size=4, max_length=48)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def fit(rank: int, folder: Path, root: Path) -> list[float]:
    """Perplexities of a fit with samples on two ranks."""
    task = ready(folder)
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options |= {"enable_checkpointing": False, "accelerator": "cpu", "devices": 2, "strategy": "ddp", "max_epochs": 1}
    trainer = Trainer(default_root_dir=root, callbacks=[TextSamples()], **options)
    trainer.fit(task, datamodule=data(folder))
    return [
        float(trainer.callback_metrics["val/perplexity"]),
        float(trainer.validate(task, data(folder), verbose=False)[0]["val/loss"]),
    ]


def test_samples_of_a_fit(folder: Path, trainer: Callable[..., Trainer]) -> None:
    """Before, after each of two epochs, and not twice at the end; prompts are those of the validation rows."""
    trainer(callbacks=[TextSamples()], max_epochs=2).fit(ready(folder), datamodule=data(folder))
    rows = lines(folder)
    assert [row["step"] for row in rows] == [0] * 3 + [3] * 3 + [6] * 3
    assert "### Instruction:\nWhat is 1?" in rows[1]["prompt"]
    assert rows[1]["prompt"].endswith("### Response:\n")
    assert all(len(row["text"]) for row in rows[:3])


def test_samples_leave_a_fit_as_it_is(folder: Path, trainer: Callable[..., Trainer]) -> None:
    """Random numbers, modes and so all weights, with dropout."""
    weights = []
    for callbacks in ([], [TextSamples(["What is 7?", "text"])]):
        task = ready(folder, lora_dropout=0.3)
        trainer(callbacks=callbacks, max_epochs=2).fit(task, datamodule=data(folder))
        assert task.training
        weights.append({name: p.detach().clone() for name, p in task.named_parameters() if p.requires_grad})
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_most_probable_tokens_by_hand(folder: Path) -> None:
    """Alone and beside a longer prompt, a text is that of a loop over the task itself."""
    task = ready(folder, lora_dropout=0.5)
    task.configure_model()
    task.train()
    tokenizer = task.tokenizer
    prompt = tokenizer("the cat")["input_ids"]
    ids, task_eval = list(prompt), task.eval()
    with torch.no_grad():
        while len(ids) < len(prompt) + 8 and ids[-1] != tokenizer.eos_token_id:
            ids.append(int(task_eval({"input_ids": torch.tensor([ids])})[0, -1].argmax()))
    by_hand = tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
    task.train()
    assert continued(task, ["the cat"], 8) == [by_hand]
    assert continued(task, ["the cat", "What does json.dumps do?"], 8)[0] == by_hand
    assert task.training


def test_two_ranks_give_the_numbers_of_one(folder: Path, two_ranks: TwoRanks, trainer: Callable[..., Trainer]) -> None:
    """A file of rank zero, without hanging; perplexity is weighted by tokens, not by ranks."""
    first, second = two_ranks(fit, folder, folder / "ranks")
    assert first == second
    assert len(lines(folder / "ranks")) == 6
    alone = ready(folder)
    found = trainer().validate(alone, datamodule=data(folder), verbose=False)[0]
    start = two_ranks(validate, folder)
    assert start[0] == pytest.approx(found["val/perplexity"], rel=1e-5)


def validate(rank: int, folder: Path) -> float:
    """Perplexity of the untrained model on two ranks, whose 5 rows do not divide evenly."""
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", enable_model_summary=False, **options)
    return float(trainer.validate(ready(folder), datamodule=data(folder), verbose=False)[0]["val/perplexity"])


def test_prompts_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file; expected a list"):
        TextSamples(str(tmp_path / "none.txt"))
    with pytest.raises(ValueError, match="an empty text"):
        TextSamples(["a", " "])
    (tmp_path / "two.txt").write_text("one prompt\n\nanother\n")
    assert TextSamples(str(tmp_path / "two.txt")).prompts == ["one prompt", "another"]
