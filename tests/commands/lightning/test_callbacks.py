"""Checkpoints of a run."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jsonargparse import Namespace

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
    task: Any = SimpleNamespace(headline=HIGHER)
    for resume in (False, True):
        first, *_, best, last = run_callbacks(options, "fit", task, SimpleNamespace(), resume)  # type: ignore[arg-type]
        assert isinstance(first, ScoreBeforeFit)
        assert first.resume == resume
        assert (best.filename, last.filename) == ("best", "last")  # type: ignore[attr-defined]
