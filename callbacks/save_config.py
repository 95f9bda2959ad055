"""Resolved config of a run, for its run folder and its loggers."""

import csv
import io
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from checkpoints.atomic import write_atomically

COLUMNS = ("option", "value", "source", "place")


class SaveConfig(SaveConfigCallback):
    """Writes the resolved config into the run folder and passes it to every logger.

    Args:
        parser: Parser of the config.
        config: The config.
        values: Rows of ``values.csv``: option, value, where the value is from, and file and line of the recipe. None
            without a recipe.
        kwargs: Arguments of Lightning's callback.
    """

    def __init__(
        self,
        parser: LightningArgumentParser,
        config: Namespace,
        values: list[tuple[str, str, str, str]] | None = None,
        **kwargs: Any,
    ) -> None:
        self.values = values
        config = config.clone()
        # without the folders of this run, so that a later run with this file gets its own folder
        config.trainer.default_root_dir = config.ckpt_path = None
        super().__init__(parser, config, **kwargs)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder = Path(str(trainer.log_dir))  # here, because all ranks must call log_dir, and only one saves
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.values is not None:
            write_table(self.folder / "values.csv", self.values)
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False, format="yaml"))
        for logger in trainer.loggers:
            logger.log_hyperparams(config)


def write_table(path: Path, rows: list[tuple[str, str, str, str]]) -> None:
    """Write the rows of ``values.csv``."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
    write_atomically(path, lambda new: new.write_text(text.getvalue()))
