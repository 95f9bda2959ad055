"""Unknown options and damaged configs are refused with a hint."""

from collections.abc import Callable
from pathlib import Path

import pytest

from commands.lightning.parser import without
from tests.support.command_line import Answer, folders


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.weight_decy", "1"], "did you mean --model.weight_decay?"),
        (["--weight_decay", "1"], "did you mean --model.weight_decay?"),
        (["--model.ssf_stdd=1"], "did you mean --model.ssf_std?"),
        (["--data.batchsize=1"], "did you mean --data.batch_size"),
        (["--trainer.maxx_epochs=1"], "did you mean --trainer.max_epochs"),
        (["--trainer.max_epoch=3"], "did you mean --trainer.max_epochs"),  # no abbreviation
        (["--model.lr", "fast"], "error: model.lr='fast': expected a number\n"),
        (["--model.optimizer", "adagrad"], "adagrad"),
        (["--config", "nothing.yaml"], "File does not exist"),
    ],
)
def test_refused_by_the_parser(
    args: list[str], message: str, base: list[str], model: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    answer = call("fit", *model, *base, *args, "--run_root", tmp_path)
    assert answer.code == 2
    assert message in answer.err
    assert not folders(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model: {init_args: [1", "line 1"),
        ("model:\n  init_args:\n    weigth_decay: 1\n", "did you mean --model.weight_decay?"),
        ("trainer:\n  max_epoch: 1\n", "did you mean --trainer.max_epochs"),
        ("model:\n  init_args:\n    lr: [1]\n", "model.lr='[1]': expected a number"),
        ("trayner: {max_epochs: 1}\n", "trayner"),
    ],
)
def test_bad_config(
    content: str, message: str, base: list[str], model: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    answer = call("fit", *model, *base, "--config", tmp_path / "bad.yaml", "--run_root", tmp_path)
    assert answer.code == 2
    assert message in answer.err


def test_a_config_that_is_no_text(model: list[str], weights: Path, call: Callable[..., Answer]) -> None:
    answer = call("fit", *model, "--config", weights)
    assert answer.code == 2
    assert f"{weights}: expected a config, a text in UTF-8" in answer.err


def test_missing_data(model: list[str], call: Callable[..., Answer]) -> None:
    answer = call("fit", *model)
    assert answer.code == 2
    assert "error: required: --data" in answer.err


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a: 1\nb: {c: 2}\n", "a: 1\n"),
        ("{a: 1e-3, b: 2}", "{a: 1e-3}\n"),
        ("a: '1'\nb:\n- 1\n", "a: '1'\n"),
    ],
)
def test_keys_of_other_subcommands_are_left_out(content: str, expected: str) -> None:
    assert without(content, ["b", "x"]) == expected


@pytest.mark.parametrize("content", ["a: 1 # mine\n", "- b\n", "b", "{b: [1", ""])
def test_other_configs_stay(content: str) -> None:
    assert without(content, ["b"]) == content


def test_a_misspelled_group_is_refused_by_every_subcommand(
    base: list[str], model: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    (tmp_path / "bad.yaml").write_text("checkpoints: {monitor: null}")
    for command in ("fit", "test"):
        answer = call(command, *model, *base, "--config", tmp_path / "bad.yaml")
        assert answer.code == 2
        assert "checkpoints" in answer.err
