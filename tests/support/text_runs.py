"""Folders of tiny pretrained models of text with data, for runs from the command line."""

from pathlib import Path
from typing import Any

import torch

from tests.support.text import BERT, LLAMA
from tests.support.texts import tokenizer, write_jsonl

SIZES = {"train": 12, "val": 5, "test": 5}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", LLAMA),
    "bert": ("BertForSequenceClassification", "BertConfig", BERT),
}


def write_model(folder: Path, arch: str, tokens: int = 304) -> Path:
    """Write a model with random weights, which a backbone reads as pretrained, and its tokenizer.

    Args:
        folder: New folder.
        arch: ``llama`` or ``bert``.
        tokens: Tokens that the model knows.
    """
    import transformers

    cls, config, args = MODELS[arch]
    torch.manual_seed(0)
    made = getattr(transformers, cls)(getattr(transformers, config)(**args | {"vocab_size": tokens}))
    made.save_pretrained(folder)
    tokenizer(pad_token="<pad>").save_pretrained(folder)
    return folder


def row_of(kind: str, number: int) -> dict[str, Any]:
    """A row of instructions, classes or numbers."""
    if kind == "instructions":
        return {"instruction": f"What is {number}?", "output": f"{number} is a number. " * (1 + number % 3)}
    return {
        "text": f"text {number} " * (1 + number % 3),
        "label": "ab"[number % 2] if kind == "classes" else number + 0.5,
    }


def write_rows(folder: Path, kind: str) -> Path:
    """Write training, validation and test rows of ``instructions``, ``classes`` or ``numbers``."""
    for split, count in SIZES.items():
        write_jsonl(folder / f"{split}.jsonl", [row_of(kind, number) for number in range(count)])
    return folder


def run_options(task: str, folder: Path) -> list[str]:
    """Options of a tiny fit, with model and data below ``folder``."""
    arch, kind = {
        "language_modeling": ("llama", "instructions"),
        "text_classification": ("bert", "classes"),
        "text_regression": ("bert", "numbers"),
    }[task]
    if not (folder / arch).exists():
        write_model(folder / arch, arch)
    if not (folder / kind).exists():
        write_rows(folder / kind, kind)
    data = "InstructionDataset" if kind == "instructions" else "TextTable"
    options = [f"--task={task}", f"--model.backbone={folder / arch}", f"--data={data}", f"--data.root={folder / kind}"]
    options += ["--data.max_length=48", "--data.batch_size=4", "--trainer.accelerator=cpu"]
    return [*options, "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
