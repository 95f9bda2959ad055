"""Texts that a language model writes behind fixed prompts."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from backbones.evaluating import evaluating
from backbones.transformers_models import quiet
from callbacks.scoring.undisturbed import eagerly
from checkpoints.atomic import write_atomically
from lightning_modules.run import datamodule_of, writes_files
from lightning_modules.text_task import TextTask

ROWS = 3  # validation rows whose prompts are taken by default
WORDS = 8  # of a text without a prompt, which its first words stand for
NEW_TOKENS = 64  # of a sample at most
FILE = "samples.jsonl"
COLUMNS = ("step", "epoch", "prompt", "text")


class TextSamples(Callback):
    """Writes ``samples.jsonl``: what a language model writes before the fit, after each validation and at the end.

    Each line has ``step``, ``epoch``, ``prompt`` and ``text``. Each next token is the most probable one, so that no
    random number is drawn. A run with a logger of Weights & Biases logs the table as ``val/samples``.

    Args:
        prompts: The prompts, or a text file with one in each line. By default those of the first three validation rows,
            or their first eight words if they have no prompt.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a prompt is empty.
    """

    def __init__(self, prompts: list[str] | str | None = None) -> None:
        if isinstance(prompts, str):
            file = Path(prompts).expanduser()
            if not file.is_file():
                raise FileNotFoundError(
                    f"prompts={prompts!r}: no such file; expected a list, or a file with one a line"
                )
            prompts = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        if any(not prompt.strip() for prompt in prompts or []):
            raise ValueError(f"prompts={prompts}: an empty text; expected texts to continue")
        self.prompts = prompts
        self.rows: list[tuple[int, int, str, str]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rows = []
        self.write(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.write(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.write(trainer, pl_module)

    def write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write samples of the present model, unless those of this step are there."""
        assert isinstance(pl_module, TextTask)
        folder = Path(str(trainer.log_dir or trainer.default_root_dir))  # all ranks must call log_dir
        prompts = first_prompts(datamodule_of(trainer)) if self.prompts is None else self.prompts
        if not prompts or (self.rows and self.rows[-1][0] == trainer.global_step):
            return
        texts = continued(pl_module, prompts)  # on all ranks, because shards of weights are gathered from all
        self.rows += [(trainer.global_step, trainer.current_epoch, *pair) for pair in zip(prompts, texts, strict=True)]
        if not writes_files(trainer):
            return
        lines = "".join(
            json.dumps(dict(zip(COLUMNS, row, strict=True)), ensure_ascii=False) + "\n" for row in self.rows
        )
        write_atomically(folder / FILE, lambda path: path.write_text(lines, encoding="utf-8"))
        table: list[Any] = [list(row) for row in self.rows]
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_text("val/samples", columns=list(COLUMNS), data=table)


def first_prompts(data: Any) -> list[str]:
    """Prompts of the first validation rows, or their first words; none without validation rows of texts."""
    dataset = data.splits.get("val") if data is not None else None
    samples = getattr(dataset, "samples", None)
    texts = [samples[index] for index in range(min(ROWS, len(samples)))] if samples is not None else []
    return [
        text.first if text.first and text.second else " ".join(f"{text.first}{text.second}".split()[:WORDS])
        for text in texts
    ]


def continued(task: TextTask, prompts: list[str], new_tokens: int = NEW_TOKENS) -> list[str]:
    """Texts behind prompts, by the most probable next token each time.

    Args:
        task: A task with a causal model.
        prompts: Texts. Their last tokens count if the model cannot read all.
        new_tokens: Tokens of a text at most.
    """
    config = task.input_config
    tokenizer, context = config["tokenizer"], config["context"]
    new_tokens = min(new_tokens, context // 2)
    rows = [tokenizer(prompt)["input_ids"][-(context - new_tokens) :] for prompt in prompts]
    width = max(map(len, rows))
    device = task.device
    ids = torch.full((len(rows), width), tokenizer.pad_token_id, device=device)
    mask = torch.zeros_like(ids)
    for place, there, row in zip(ids, mask, rows, strict=True):  # padded before the text, behind which the model writes
        place[width - len(row) :] = torch.tensor(row, device=device)
        there[width - len(row) :] = 1
    with evaluating(task), torch.no_grad(), eagerly(), task.mixed_dtypes(), quiet():
        out: Tensor = task.backbone.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    return list(tokenizer.batch_decode(out[:, width:], skip_special_tokens=True))
