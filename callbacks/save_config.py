"""Resolved config of a run, for its run folder and its loggers."""

from typing import Any

import yaml
from jsonargparse import Namespace
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback


class SaveConfig(SaveConfigCallback):
    """Writes the resolved config into the run folder and passes it to every logger."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **kwargs: Any) -> None:
        config = config.clone()
        # without the folders of this run, so that a later run with this file gets its own folder
        config.trainer.default_root_dir = config.ckpt_path = None
        super().__init__(parser, config, **kwargs)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False, format="yaml"))
        for logger in trainer.loggers:
            logger.log_hyperparams(config)
