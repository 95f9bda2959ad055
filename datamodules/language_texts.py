"""Texts whose next tokens a language model learns."""

from typing import Any

import torch
from torch import Tensor

from datamodules.items import Items
from datamodules.samples import Samples
from datamodules.text_samples import Text
from datamodules.texts import NO_LABEL, Side, TextModule

ONE_TOKEN = 64  # characters up to which a text could be a single token, which has no token that follows


class LanguageTexts(TextModule):
    """Texts for ``--task language_modeling``. The targets of a text are its own tokens.

    Labels (N,) are the tokens themselves; the task shifts them. Padding has none, nor have prompts if a subclass sets
    ``mask_prompt``.

    Args:
        append_eos: Whether the token for the end of a text follows each text that is shorter than ``max_length``.
        padding_side: Side on which shorter texts of a batch are padded. ``left``: before the text, as language models
            generate. ``right``: behind it, for a model with a table of positions, such as GPT-2.
    """

    mask_prompt = False

    def __init__(self, append_eos: bool = True, padding_side: Side = "left", **kwargs: Any) -> None:
        super().__init__(padding_side=padding_side, **kwargs)
        self.append_eos = append_eos

    # items

    def item(self, sample: Text) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs of a prompt with its text, each (N,), and labels (N,).

        Raises:
            ValueError: If no token has a loss.
        """
        ids = self.ids(sample.first + sample.second)
        end = self.tokenizer.eos_token_id
        if self.append_eos and end is not None and len(ids) < self.max_length and ids[-1:] != [end]:
            ids = [*ids, end]
        tokens = torch.tensor(ids, dtype=torch.long)
        labels = tokens.clone()
        if self.mask_prompt:
            labels[: common(self.ids(sample.first), ids)] = NO_LABEL
        if not (labels[1:] != NO_LABEL).any():  # the first token follows none
            if self.mask_prompt and sample.first:
                raise ValueError(
                    f"its prompt fills all of the {self.max_length} tokens of data.max_length, so that no token has a "
                    "loss: pass a larger --data.max_length, or take the row out"
                )
            raise ValueError(f"it has {len(ids)} tokens, so that none follows another: take the row out")
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}, labels

    def ids(self, text: str) -> list[int]:
        """Tokens of a text, cut to ``max_length``."""
        return self.tokens(text)["input_ids"]

    def collate_targets(self, targets: list[Any], width: int) -> Tensor:
        return self.padded(targets, NO_LABEL, width)

    # checks

    def dataset(self, split: str, samples: Samples) -> Items:
        """Dataset of a split, after a check of its samples: each has a token with a loss."""
        items = super().dataset(split, samples)
        for index in range(len(samples)):
            if self.doubtful(samples[index]):
                items[index]  # raises
        return items

    def doubtful(self, sample: Text) -> bool:
        """Whether a sample may have no token with a loss, which only its tokens tell; a quick check by its length."""
        long = len(sample.first.encode()) + self.tokenizer.num_special_tokens_to_add() + 2 >= self.max_length
        return len(sample.first + sample.second) <= ONE_TOKEN or (self.mask_prompt and long)

    # facts

    def item_settings(self) -> tuple[Any, ...]:
        return (*super().item_settings(), self.mask_prompt, self.append_eos)


def common(first: list[int], second: list[int]) -> int:
    """Number of equal tokens at the start of two lists."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
