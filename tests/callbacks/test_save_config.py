"""The resolved config in the run folder, and in front of every logger."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

from callbacks.save_config import SaveConfig


class Remembers:
    """A logger that remembers."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        self.seen.append(params)


@pytest.fixture
def parser() -> Any:
    parser = ArgumentParser()
    for name in ("trainer.default_root_dir", "ckpt_path", "model.backbone"):
        parser.add_argument(f"--{name}", type=str | None, default=None)
    parser.add_argument("--model.lr", type=float, default=0.1)
    parser.add_argument("--model.backbone_args", type=dict[str, Any] | None, default=None)
    return parser


def test_config_reaches_file_and_loggers(parser: Any, tmp_path: Path) -> None:
    places = [f"--trainer.default_root_dir={tmp_path}", "--ckpt_path=last.ckpt"]
    config = parser.parse_args([*places, "--model.lr=0.25", "--model.backbone_args.depth=2", "--model.backbone=vït"])
    rows = [("model.lr", "0.25", "train.py l.3, and more", "vtab/gps.yaml:7")]
    callback = SaveConfig(parser, config, rows, overwrite=True)
    loggers = [Remembers(), Remembers()]
    broadcast = SimpleNamespace(broadcast=lambda value: value)
    trainer: Any = SimpleNamespace(log_dir=tmp_path, is_global_zero=True, loggers=loggers, strategy=broadcast)
    callback.setup(trainer, None, "fit")  # type: ignore[arg-type]

    expected = {
        "trainer": {"default_root_dir": None},  # the next run from this file gets a folder of its own
        "ckpt_path": None,
        "model": {"backbone": "vït", "lr": 0.25, "backbone_args": {"depth": 2}},
    }
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == expected
    values = [*csv.reader((tmp_path / "values.csv").read_text().splitlines())]
    assert values == [["option", "value", "source", "place"], [*rows[0]]]
    assert [logger.seen for logger in loggers] == [[expected], [expected]]
    assert config.trainer.default_root_dir == str(tmp_path), "the run itself lost its folder"
    assert config.ckpt_path == "last.ckpt"
