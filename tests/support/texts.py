"""A tiny tokenizer, files of texts, and what a datamodule asks a task on text for."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from datamodules.texts import TextModule

WORDS = ["the cat sat on the mat", "What does json.dumps do?", "### Instruction: ### Input: ### Response:"]
SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def tokenizer(**options: Any) -> Any:
    """BPE on bytes with 300 tokens; ``<unk>`` 0, ``<s>`` 1, ``</s>`` 2, ``<pad>`` 3.

    Args:
        options: Special tokens and other options of ``PreTrainedTokenizerFast``.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    model = Tokenizer(models.BPE(unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    special = [*SPECIAL.values(), "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(WORDS * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=model, **SPECIAL | options)


def pair_tokenizer() -> Any:
    """The same with ``<s> first </s> second </s>``, and with types of tokens, as BERT's has them."""
    from tokenizers.processors import TemplateProcessing

    made = tokenizer(pad_token="<pad>", model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return made


def text_task(targets: str = "tokens", context: int = 64, made: Any = None) -> Any:
    """A task as far as datamodules look at it."""
    config = {"tokenizer": made if made is not None else tokenizer(), "context": context}
    return SimpleNamespace(unit="text", targets=targets, input_config=config)


def ready(data: TextModule, made: Any = None, context: int = 64) -> Any:
    """A datamodule whose splits are set up, without a trainer."""
    data.follow(text_task(data.targets, context, made))
    for split in ("train", "val", "test"):
        samples = data.samples(split)  # type: ignore[arg-type]
        if samples is not None:
            data.splits[split] = data.dataset(split, samples)
    return data


def write_jsonl(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Write one object a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file
