"""A study whose runs are pretended."""

import json
from pathlib import Path

import pytest

from commands.grid import plan, take_options
from commands.grid.queue import Queue
from commands.lightning.errors import Failed
from lightning_modules.classification import Classification
from tests.conftest import BACKBONE, TINY
from train import main


@pytest.fixture(scope="session")
def options(images: Path, weights: Path) -> list[str]:
    """Options of every fit."""
    model = {"backbone": BACKBONE, "pretrained": weights, "lr": 0.01}
    model |= {f"backbone_args.{key}": value for key, value in TINY.items()}
    trainer = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": "false", "enable_model_summary": "false"}
    return (
        ["--data", "ImageDataset", "--data.root", str(images), "--data.batch_size", "4"]
        + [f"--model.{key}={value}" for key, value in model.items()]
        + [f"--trainer.{key}={value}" for key, value in trainer.items()]
    )


class Fake:
    """``execute`` without training: notes the command lines, and fails as often as it is told for a part of a name."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.args: list[list[str]] = []
        self.apart: list[bool] = []
        self.failures: dict[str, int] = {}

    def __call__(self, args: list[str], log: Path | None, own_process: bool) -> None:
        root = Path(args[args.index("--run_root") + 1])
        self.ran.append(str(root))
        self.args.append(args)
        self.apart.append(own_process)
        for part, count in self.failures.items():
            if part in str(root) and count:
                self.failures[part] -= 1
                raise Failed("as told")
        folder = root / "X" / "data" / "id"
        folder.mkdir(parents=True, exist_ok=True)
        values = dict(arg.removeprefix("--").split("=", 1) for arg in args if "=" in arg)
        value = 1 / (1 + abs(float(values.get("model.lr", 1)) - 0.25))
        (folder / "result.json").write_text(json.dumps({"test/acc1": 0.5, "best/val/acc1": value, "val/acc1": 0.0}))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    runs = Fake()
    monkeypatch.setattr("commands.lightning.runs.execute", runs)
    monkeypatch.setattr("commands.grid.queue.check", lambda args: Classification.headline._asdict())
    return runs


def call(*args: object) -> int:
    try:
        main(["grid", *map(str, args)])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def refused(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    assert call(*args) in (1, 2)
    return capsys.readouterr().err


def planned(folder: Path, args: list[str]) -> Queue:
    """A study that nobody works on yet."""
    queue, (own, rest) = Queue(folder), take_options(args)
    queue.plan(*plan.cells(own, rest), own.retries, own.stale_after)
    return queue
