"""Checkpoints of a run."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace
from torch import nn

from callbacks.scoring.score_before_fit import ScoreBeforeFit
from commands.lightning.callbacks import checkpoint_options, run_callbacks
from commands.lightning.options import CHECKPOINT
from lightning_modules.task import Headline
from tests.support.command_line import Answer, folders


def test_last_is_the_last_epoch(base: list[str], model: list[str], call: Callable[..., Answer], tmp_path: Path) -> None:
    # accuracy stays as it is, so the first epoch is the best one
    options = ("--trainer.max_epochs=3", "--model.lr=1e-12", "--model.min_lr=0", "--run_root", tmp_path)
    assert call("fit", *model, *base, *options).code == 0
    (folder,) = folders(tmp_path)
    epochs = {p.stem: torch.load(p, weights_only=True)["epoch"] for p in (folder / "checkpoints").iterdir()}
    assert epochs == {"best": 0, "last": 2}


HIGHER = Headline("mIoU", True, "mIoU (%)", 100.0)
LOWER = Headline("perplexity", False, "perplexity")


def options_of(**options: Any) -> Namespace:
    return Namespace(**CHECKPOINT | options)


@pytest.mark.parametrize(
    ("headline", "options", "validates", "expected"),
    [
        (HIGHER, {}, True, ("val/mIoU", "max")),
        (LOWER, {}, True, ("val/perplexity", "min")),
        (HIGHER, {"monitor": "val/loss", "mode": "min"}, True, ("val/loss", "min")),
        (HIGHER, {"monitor": None}, True, (None, "max")),
        (HIGHER, {}, False, (None, "max")),
    ],
)
def test_monitored_metric(
    headline: Headline, options: dict[str, Any], validates: bool, expected: tuple[str | None, str], tmp_path: Path
) -> None:
    task: Any = SimpleNamespace(headline=headline)
    data: Any = SimpleNamespace(validates=validates)
    found = checkpoint_options(options_of(**options), task, data, tmp_path)
    assert (found["monitor"], found["mode"], found["dirpath"]) == (*expected, tmp_path)


def test_a_resumed_run_is_not_scored_again() -> None:
    options = Namespace(
        trainer=Namespace(default_root_dir="x", logger=False), score=Namespace(), checkpoint=options_of()
    )
    task: Any = SimpleNamespace(headline=HIGHER, backbone=nn.Identity(), uncompilable="", unit="image")
    for resume in (False, True):
        first, *_, best, last = run_callbacks(options, "fit", task, SimpleNamespace(), resume)  # type: ignore[arg-type]
        assert isinstance(first, ScoreBeforeFit)
        assert first.resume == resume
        assert (best.filename, last.filename) == ("best", "last")  # type: ignore[attr-defined]


def test_options_about_computing(
    base: list[str], model: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    """They are applied and recorded, and a run may resume with others."""
    flags = ("--checkpoint_activations=true", "--matmul_precision=high")
    assert call("fit", *model, *base, *flags, "--run_root", tmp_path / "first").code == 0
    assert torch.get_float32_matmul_precision() == "highest"
    (folder,) = folders(tmp_path / "first")
    first = json.loads((folder / "result.json").read_text())
    recorded = {"compile": None, "checkpoint_activations": True, "matmul_precision": "high", "channels_last": False}
    assert recorded.items() <= first.items()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert recorded.items() <= config.items()
    last = folder / "checkpoints" / "last.ckpt"
    more = ("--ckpt_path", last, "--trainer.max_epochs=2", "--run_root", tmp_path / "second")
    answer = call("fit", *model, *base, *more)
    assert answer.code == 0, answer.err
    (again,) = folders(tmp_path / "second")
    second = json.loads((again / "result.json").read_text())
    assert (second["checkpoint_activations"], second["matmul_precision"]) == (False, "highest")
    assert second["cost/saved_mib"] > 1.2 * first["cost/saved_mib"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method=dyt", "--model.dyt_skip=gather", "--compile=default"], "compile=default: DyT cannot be compiled"),
        (["--method=ssf", "--channels_last=true"], "channels_last: VisionTransformer has no convolutions behind"),
        (
            ["--method=linear_probe", "--checkpoint_activations=true"],
            "the gradients of LinearProbe need no activations",
        ),
    ],
)
def test_options_that_a_model_refuses(
    flags: list[str], message: str, model: list[str], base: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    answer = call("fit", *model[2:], *flags, *base, "--run_root", tmp_path)
    assert answer.code == 1
    assert answer.err.startswith("error: ") or "\nerror: " in answer.err
    assert message in answer.err
    assert answer.err.count("leave") == 1
