"""Loggers write into the run folder, and W&B gets names."""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import wandb
import yaml
from jsonargparse import Namespace
from lightning.pytorch.loggers import WandbLogger

from commands.lightning.cli import GraftCLI
from commands.lightning.loggers import place_loggers, user_environment, wandb_names, wandb_offline
from tests.conftest import BACKBONE, ROOT
from tests.support.command_line import Answer, folders


def test_wandb_offline(base: list[str], model: list[str], images: Path, tmp_path: Path) -> None:
    args = ["fit", *model, *base, "--run_root", str(tmp_path), "--config", str(ROOT / "configs/logger/wandb.yaml")]
    cli = GraftCLI.run(args)
    folder = Path(cli.trainer.default_root_dir)
    assert wandb.run is None, "finished, so that the next run of this process is one of its own"
    (run,) = (logger.experiment for logger in cli.trainer.loggers if isinstance(logger, WandbLogger))
    assert Path(run.dir).is_relative_to(folder / "wandb")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for part in ("model", "data", "trainer", "checkpoint"):
        assert run.config[part] == config[part], part
    assert run.config["seed_everything"] == 0
    assert (run.group, run.job_type) == (f"SSFClassification-{images.name}", "train")
    assert run.name == f"SSFClassification-{images.name}-s0"
    assert run.project == "graft"
    assert set(run.tags or ()) == {"SSFClassification", images.name, BACKBONE}
    (stored,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    deadline = time.monotonic() + 60
    words = (b"ssf_head_norm", b"val/acc1", b"cost/trainable_params")
    while not all(word in stored.read_bytes() for word in words):  # another process writes it, a moment later
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert (folder / "metrics.csv").exists(), "the CSV logger of the same file"


def test_metrics_without_any_logger(
    base: list[str], model: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    assert call("fit", *model, *base, "--trainer.logger=false", "--run_root", tmp_path).code == 0
    (folder,) = folders(tmp_path)
    assert {"result.json", "adapter", "checkpoints"} <= {path.name for path in folder.iterdir()}
    assert not (folder / "metrics.csv").exists()


def test_a_logger_without_files(tmp_path: Path) -> None:
    """Such as those of Comet and Neptune, which write to a server."""
    logger = Namespace(class_path="lightning.pytorch.loggers.logger.DummyLogger", init_args=Namespace())
    assert place_loggers([logger], tmp_path) == [logger]
    assert not logger.init_args.as_dict()


def test_a_csv_logger_by_default(tmp_path: Path) -> None:
    (logger,) = place_loggers(None, tmp_path)
    assert logger.class_path == "lightning.pytorch.loggers.CSVLogger"
    assert logger.init_args == Namespace(save_dir=str(tmp_path), name="", version="")
    assert place_loggers(False, tmp_path) is False


def test_names_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    names = wandb_names("test", "SSFClassification", "cifar", 3, "vit" * 40)
    assert names["WANDB_NAME"] == "SSFClassification-cifar-s3"
    assert names["WANDB_JOB_TYPE"] == "eval"
    assert names["WANDB_MODE"] == "offline"
    assert [len(tag) for tag in names["WANDB_TAGS"].split(",")] == [17, 5, 64]
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert "WANDB_MODE" not in wandb_names("fit", "a", "b", 0, "")


def test_the_environment_of_the_user_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_NAME", "mine")
    monkeypatch.delenv("WANDB_TAGS", raising=False)
    with user_environment():
        for name, value in wandb_names("fit", "a", "b", 0, "").items():
            os.environ.setdefault(name, value)
        assert os.environ["WANDB_TAGS"] == "a,b"
        assert os.environ["WANDB_NAME"] == "mine"
    assert "WANDB_TAGS" not in os.environ
    assert os.environ["WANDB_NAME"] == "mine"


@pytest.mark.parametrize(
    ("mode", "options", "expected"),
    [("online", {}, True), ("offline", {}, False), ("disabled", {}, False), ("online", {"offline": True}, False)],
)
def test_a_server_that_cannot_be_reached(
    mode: str, options: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.delenv("HTTP_PROXY", raising=False)
    logger = Namespace(class_path="lightning.pytorch.loggers.WandbLogger", init_args=Namespace(**options))
    assert wandb_offline([logger]) is expected
    assert not wandb_offline([])
    assert not wandb_offline(False)


def test_a_server_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        logger = Namespace(class_path="lightning.pytorch.loggers.WandbLogger", init_args=Namespace())
        assert not wandb_offline(logger)
