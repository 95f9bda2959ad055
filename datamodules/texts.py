"""Texts for a model of transformers: tokens, padding and batches."""

import hashlib
import json
from typing import Any, Literal

import torch
from torch import Tensor

from datamodules.base import DataModule
from datamodules.fitting import check_targets
from datamodules.items import Items
from datamodules.length_sampler import LengthSampler
from datamodules.loading import EpochSampler
from datamodules.samples import Samples
from lightning_modules.batch import Batch
from lightning_modules.task import Targets

NO_LABEL = -100  # label of a token without a loss
Side = Literal["left", "right"]


class TextItems(Items):
    """Items of texts. Worker processes are not started by default, because tokens are made faster than a step runs."""

    in_memory = True


class TextModule(DataModule):
    """Texts in the form that the model of the task needs: tokens of its tokenizer, cut and padded.

    Inputs of a batch are ``input_ids`` (B, N), ``attention_mask`` (B, N) and, where the tokenizer gives them,
    ``token_type_ids`` (B, N), all int64. A subclass gives ``samples`` of ``Text`` and ``item``.

    Args:
        max_length: Tokens of a text; those behind are cut off. At most as many as the model reads.
        padding_side: Side on which shorter texts of a batch are padded. ``left``: before the text, as language models
            are trained and generate. ``right``: behind it. A model with a table of positions, such as GPT-2 or BERT,
            needs ``right``, because padding before a text would move its positions.
        pad_to_multiple: Number that the padded length N is a multiple of, up to the length that the model reads. GPUs
            are fastest with multiples of 8.
        pad_token: Token that pads. By default that of the tokenizer, or its unknown token if that has the meaning of
            the end of a text as well.
        group_by_length: Whether the training texts of a batch have similar numbers of characters, which saves padding.
            Each run of 50 shuffled batches is sorted from long to short.
    """

    unit = "text"
    targets: Targets = "tokens"

    def __init__(
        self,
        max_length: int = 512,
        padding_side: Side = "right",
        pad_to_multiple: int = 8,
        pad_token: str | None = None,
        group_by_length: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if max_length < 2:
            raise ValueError(f"max_length={max_length}: expected at least 2 tokens")
        if pad_to_multiple < 1:
            raise ValueError(f"pad_to_multiple={pad_to_multiple}: expected at least 1")
        self.max_length, self.padding_side, self.pad_to_multiple = max_length, padding_side, pad_to_multiple
        self.pad_token, self.group_by_length = pad_token, group_by_length
        self.tokenizer: Any = None
        self.pad_values: dict[str, int] = {}  # value of padding in each tensor of the inputs

    def configure(self, input_config: dict[str, Any]) -> None:
        """Take over the tokenizer and the context of a task, and set the tokenizer's padding token.

        Raises:
            ValueError: If ``max_length`` is above the context, or no token can pad.
        """
        self.tokenizer, self.context = input_config["tokenizer"], input_config["context"]
        if self.max_length > self.context:
            raise ValueError(
                f"max_length={self.max_length} is larger than the {self.context:,} tokens that the model reads: pass "
                f"--data.max_length {self.context}, or a model with a longer context"
            )
        # in the tokenizer itself, because the task finds the end of a text by its padding token
        self.tokenizer.pad_token = padding_token(self.tokenizer, self.pad_token)
        types = getattr(self.tokenizer, "pad_token_type_id", 0)
        self.pad_values = {"input_ids": self.tokenizer.pad_token_id, "attention_mask": 0, "token_type_ids": types}

    def follow(self, task: Any) -> None:
        check_targets(self, task)
        super().follow(task)

    # items

    def tokens(self, text: str, second: str | None = None) -> dict[str, list[int]]:
        """Inputs of a text, or of a pair of texts, cut to ``max_length``."""
        encoded = self.tokenizer(text, second, truncation=True, max_length=self.max_length)
        return {name: encoded[name] for name in self.pad_values if name in encoded}

    def dataset(self, split: str, samples: Samples) -> Items:
        """Dataset of a split, after a check of its samples."""
        self.check_samples(split, samples)
        return TextItems(samples, self.item)

    def train_sampler(self, dataset: Items, world_size: int, rank: int) -> EpochSampler:
        if not self.group_by_length:
            return super().train_sampler(dataset, world_size, rank)
        samples = dataset.samples
        lengths = [len(text.first) + len(text.second) for text in (samples[i] for i in range(len(samples)))]
        return LengthSampler(dataset, world_size, rank, torch.tensor(lengths), self.batch_size)

    # batches

    def collate(self, items: list[Any]) -> Batch:
        """Batch of items (inputs, target) or (inputs, target, valid), padded to one length."""
        rows = [item[0] for item in items]
        width = self.width(max(len(row["input_ids"]) for row in rows))
        inputs = {name: self.padded([row[name] for row in rows], self.pad_values[name], width) for name in rows[0]}
        valid = torch.tensor([len(item) == 2 or bool(item[2]) for item in items])
        return Batch(inputs, self.collate_targets([item[1] for item in items], width), valid)

    def collate_targets(self, targets: list[Any], width: int) -> Tensor:
        """Targets of a batch whose inputs have ``width`` tokens."""
        return torch.tensor(targets)

    def width(self, longest: int) -> int:
        """Padded length of a batch whose longest text has ``longest`` tokens."""
        multiple = self.pad_to_multiple
        return min(-(-longest // multiple) * multiple, self.context)

    def padded(self, rows: list[Tensor], value: int, width: int) -> Tensor:
        """Rows of different lengths as one tensor (B, ``width``)."""
        out = torch.full((len(rows), width), value)
        for place, row in zip(out, rows, strict=True):
            start = width - len(row) if self.padding_side == "left" else 0
            place[start : start + len(row)] = row
        return out

    # facts

    def item_settings(self) -> tuple[Any, ...]:
        return self.max_length, tokenizer_digest(self.tokenizer)

    def device_settings(self) -> tuple[Any, ...]:
        return self.padding_side, self.pad_to_multiple, self.pad_values["input_ids"]

    def description(self) -> dict[str, Any]:
        return super().description() | {"max_length": self.max_length, "padding_side": self.padding_side}


def padding_token(tokenizer: Any, asked: str | None) -> str:
    """Token that pads: the one asked for, or one that does not mean the end of a text if there is such a token.

    Args:
        tokenizer: Tokenizer of transformers.
        asked: The option ``pad_token``.

    Raises:
        ValueError: If the token is unknown, or the tokenizer has none that could pad.
    """
    if asked is not None:
        if tokenizer.convert_tokens_to_ids(asked) in (None, *unknown_ids(tokenizer, asked)):
            raise ValueError(f"pad_token={asked!r}: the tokenizer has no such token; pass one of its vocabulary")
        return asked
    own, unknown, end = tokenizer.pad_token, tokenizer.unk_token, tokenizer.eos_token
    found = [token for token in (own, unknown) if token is not None and token != end] or [own]
    if found[0] is None:
        raise ValueError(
            f"the tokenizer has no token for padding besides the end of a text, {end!r}: pass --data.pad_token with a "
            f"token of its vocabulary, such as {end!r} itself, because padding has no loss"
        )
    return found[0]


def unknown_ids(tokenizer: Any, token: str) -> list[int]:
    """Ids that stand for tokens outside the vocabulary; none if ``token`` is the unknown token itself."""
    return [] if token == tokenizer.unk_token or tokenizer.unk_token_id is None else [tokenizer.unk_token_id]


def tokenizer_digest(tokenizer: Any) -> str:
    """Hash of the vocabulary and of the special tokens of a tokenizer."""
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    parts = [type(tokenizer).__name__, tokenizer.get_vocab(), special]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
