"""Command lines that contradict a checkpoint."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from commands.lightning.conflicts import refuse_conflicts, refuse_names
from commands.lightning.saved import Saved
from tests.support.command_line import Answer, folders


def test_other_method_than_the_checkpoint(fitted: Path, base: list[str], call: Callable[..., Answer]) -> None:
    answer = call("fit", "--method", "bitfit", "--ckpt_path", fitted / "checkpoints/last.ckpt", *base)
    assert answer.code == 1
    assert "SSFClassification in the checkpoint, methods.BitFitClassification here" in answer.err


def test_nothing_to_score(model: list[str], base: list[str], call: Callable[..., Answer], tmp_path: Path) -> None:
    answer = call("score", *model, *base, "--run_root", tmp_path)
    assert answer.code == 1
    assert "SSF chooses nothing from data; methods that do: child_tuning, gps, " in answer.err
    assert not folders(tmp_path)


SAVED = Saved("last.ckpt", "methods.SSFClassification", {"lr": 0.1, "ssf_std": 0.02}, 0.9, None)


def test_no_conflict() -> None:
    refuse_conflicts(SAVED, SAVED.class_path, SAVED.options | {"num_classes": 7}, 0.9)


def test_options_of_an_evaluation_may_differ() -> None:
    saved = replace(SAVED, options=SAVED.options | {"eval_flip": False})
    refuse_conflicts(saved, saved.class_path, saved.options | {"eval_flip": True}, 0.9)


def test_the_average_belongs_to_the_options() -> None:
    with pytest.raises(ValueError, match=r"ema\.decay: 0\.9 in the checkpoint, None here\. Leave them out"):
        refuse_conflicts(SAVED, SAVED.class_path, SAVED.options, None)


@pytest.mark.parametrize("path", ["best", "last"])
def test_words_of_lightning(path: str) -> None:
    with pytest.raises(ValueError, match=f"Give the file, RUN/checkpoints/{path}.ckpt"):
        refuse_names(path)
    refuse_names(None)
    refuse_names("a.ckpt")


def test_an_average_goes_on(base: list[str], model: list[str], call: Callable[..., Answer], tmp_path: Path) -> None:
    """The checkpoint brings the decay; another one is refused, and an evaluation needs none."""
    assert call("fit", *model, *base, "--ema.decay=0.9", "--run_root", tmp_path / "first").code == 0
    checkpoint = folders(tmp_path / "first")[0] / "checkpoints/last.ckpt"
    more = ["--ckpt_path", checkpoint, *base, "--trainer.max_epochs=2", "--run_root", tmp_path / "second"]
    answer = call("fit", *more, "--ema.decay=0.5")
    assert "ema.decay: 0.9 in the checkpoint, 0.5 here" in answer.err
    assert call("fit", *more).code == 0
    (folder,) = folders(tmp_path / "second")
    resumed = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert (resumed["ema_decay"], resumed["epoch"]) == (0.9, 1)
    assert resumed["raw"].keys() == resumed["state_dict"].keys()
    assert call("test", "--ckpt_path", checkpoint, *base, "--run_root", tmp_path / "test").code == 0
