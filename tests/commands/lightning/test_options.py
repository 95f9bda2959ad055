"""Options of each subcommand."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from commands.lightning.options import add_options
from commands.lightning.parser import GraftParser
from lightning_modules.classification import Classification
from methods import METHODS
from tests.conftest import ROOT
from tests.support.command_line import Answer, folders
from train import LIGHTNING


def test_help_of_fit_is_whole_in_a_process_of_its_own() -> None:
    # it leaves without taking the modules apart, so what it printed has to be out by then
    answer = subprocess.run([sys.executable, "train.py", "fit", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "--test_after_fit" in answer.stdout
    assert answer.stdout.endswith("\n")


@pytest.mark.parametrize("method", METHODS)
def test_help_names_every_argument(method: str, call: Callable[..., Answer]) -> None:
    name = f"{METHODS[method].__name__}Classification"
    text = call("fit", f"--model.help={name}").out
    own = [argument for argument in getattr(METHODS[method].__init__, "__annotations__", {}) if argument != "return"]
    for argument in {*own, "backbone", "lr", "warmup_epochs", "label_smoothing"} - {"kwargs"}:
        assert f"--model.{argument} " in text, argument
    assert "Peak learning rate" in text


GROUPS = ("checkpoint", "ema", "features", "score")
COMPUTING = {"compile", "matmul_precision", "channels_last"}
OWN = {
    "fit": {
        *GROUPS,
        *COMPUTING,
        "checkpoint_activations",
        "members",
        "export_member",
        "class_report",
        "test_after_fit",
        "override_checkpoint",
        "prompts",
        "run_root",
    },
    "score": {"score", "run_root"},
    "validate": {*COMPUTING, "members", "override_checkpoint", "run_root"},
    "test": {*COMPUTING, "class_report", "members", "override_checkpoint", "run_root"},
    "predict": {*COMPUTING, "embeddings", "explain", "override_checkpoint", "run_root", "top_k"},
}
CORE = {"help", "config", "print_config", "seed_everything", "trainer", "model", "data"}
OF_LIGHTNING = {
    "fit": {"ckpt_path", "weights_only"},
    "score": {"ckpt_path", "weights_only"},
    "validate": {"ckpt_path", "weights_only", "verbose"},
    "test": {"ckpt_path", "weights_only", "verbose"},
    "predict": {"ckpt_path", "weights_only", "return_predictions"},
}


@pytest.mark.parametrize("command", LIGHTNING)
def test_help_has_the_options_that_a_subcommand_uses(command: str, call: Callable[..., Answer]) -> None:
    text = call(command, "--help").out
    found = {flag.partition(".")[0] for flag in re.findall(r"(?m)^  (?:-\w.*, )?--([\w.]+)", text)}
    assert found == CORE | OF_LIGHTNING[command] | OWN[command]
    assert "score.resume" not in text


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("predict", "--members={lr: [1]}"),
        ("predict", "--ema.decay=0.9"),
        ("validate", "--score.mode=train"),
        ("score", "--test_after_fit=true"),
        ("score", "--checkpoint.monitor=val/loss"),
        ("test", "--export_member=a"),
        ("test", "--features.cache=ram"),
        ("fit", "--score.resume=true"),
        ("score", "--score.resume=true"),
        ("score", "--compile=default"),
        ("test", "--checkpoint_activations=true"),
    ],
)
def test_options_of_other_subcommands_are_unknown(
    command: str, flag: str, base: list[str], model: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    answer = call(command, *model, *base, flag, "--run_root", tmp_path)
    assert answer.code == 2
    assert flag.partition("=")[0].removeprefix("--") in answer.err
    assert not folders(tmp_path)


@pytest.mark.parametrize("command", ["test", "validate", "predict", "score"])
def test_every_subcommand_reads_the_config_of_a_fit(
    command: str, fitted: Path, call: Callable[..., Answer], tmp_path: Path
) -> None:
    answer = call(command, "--config", fitted / "config.yaml", "--run_root", tmp_path, "--print_config")
    assert answer.code == 0, answer.err
    used, written = yaml.safe_load(answer.out), yaml.safe_load((fitted / "config.yaml").read_text())
    assert used["model"] == written["model"]
    assert not {*GROUPS, "export_member"} - OWN[command] & used.keys()


@pytest.mark.parametrize(
    ("flag", "known"), [("--compile=fast", "reduce-overhead"), ("--matmul_precision=tf32", "high")]
)
def test_unknown_values(flag: str, known: str, model: list[str], base: list[str], call: Callable[..., Answer]) -> None:
    answer = call("fit", *model, *base, flag)
    assert answer.code == 2
    assert flag.removeprefix("--").partition("=")[0] in answer.err
    assert known in answer.err


def test_links_of_all_tasks(base: list[str], model: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    linked: list[tuple[str, str]] = []

    class Other:
        links: ClassVar[dict[str, str]] = {"num_classes": "num_classes", "vocabulary": "vocabulary_size"}

    class Parser(GraftParser):
        def link_arguments(self, source: Any, target: str, **options: Any) -> None:  # type: ignore[override]
            linked.append((source, target))

    monkeypatch.setattr("commands.lightning.options.TASKS", {"classification": Classification, "other": Other})
    add_options(Parser(), "predict")
    assert linked == [
        ("data.num_classes", "model.init_args.num_classes"),
        ("data.vocabulary_size", "model.init_args.vocabulary"),
    ]
