"""A fit through the command line, and the options that it has."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from commands.lightning.cli import GraftCLI
from tests.conftest import BACKBONE, TINY
from tests.support.command_line import Answer, answer_of


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """``call("fit", "--method", "ssf")``: run a command line in this process."""
    return partial(answer_of, capsys)


@pytest.fixture(scope="session")
def base(images: Path, weights: Path) -> list[str]:
    """Options of every run: tiny data, two steps, a quiet CPU trainer."""
    trainer = {"max_epochs": 1, "limit_train_batches": 2, "accelerator": "cpu"}
    trainer |= {"enable_progress_bar": "false", "enable_model_summary": "false"}
    return ["--data", "ImageDataset", "--data.root", str(images), "--data.batch_size", "4"] + [
        f"--trainer.{key}={value}" for key, value in trainer.items()
    ]


@pytest.fixture(scope="session")
def model(weights: Path) -> list[str]:
    """SSF on the tiny backbone."""
    options = {"backbone": BACKBONE, "pretrained": weights, "weight_decay": 0.05}
    options |= {f"backbone_args.{key}": value for key, value in TINY.items()}
    return ["--method", "ssf", *[f"--model.{key}={value}" for key, value in options.items()]]


@pytest.fixture(scope="session")
def fitted(base: list[str], model: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a fit, which no test may change."""
    root = tmp_path_factory.mktemp("runs")
    cli = GraftCLI.run(["fit", *model, *base, "--run_root", str(root), "--test_after_fit=true"])
    return Path(cli.trainer.default_root_dir)


@pytest.fixture(scope="session")
def gps(model: list[str]) -> list[str]:
    """GPS on the tiny backbone."""
    return ["--method", "gps", *[option for option in model if option.startswith("--model.") and "decay" not in option]]
