"""Every shipped YAML file parses, as its own first lines say; recipes have tests of their own."""

import re
import shlex
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands.lightning.recipes import RECIPES
from lightning_modules import Task
from methods import METHODS
from tests.conftest import ROOT
from train import LIGHTNING, main

SWEEP = ROOT / "configs/sweep/wandb.yaml"  # what W&B reads, and no config
FILES = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if RECIPES not in path.parents and path != SWEEP)
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "configs")))


def printed(args: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The config that a command line resolves to."""
    with pytest.raises(SystemExit) as stop:
        main([*args, "--print_config"])
    streams = capsys.readouterr()
    assert stop.value.code in (0, None), streams.err
    config: dict[str, Any] = yaml.safe_load(streams.out)
    return config


def leaves(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"model.init_args.lr": 0.1}``"""
    found = {}
    for key, value in config.items():
        inner = leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        found.update(inner)
    return found


@every_file
def test_file_parses(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    content = yaml.safe_load(path.read_text())
    options = []
    if "class_path" not in content.get("model", {}):
        named = re.search(r"--method ([\w+]+)(?: --task (\w+))?", path.read_text())  # in the command of the header
        method, task = named.groups() if named else ("ssf", None)
        options += ["--method", method, *(["--task", task] if task else [])]
    if "class_path" not in content.get("data", {}):
        options += ["--config", "configs/data/fashion_mnist_1k.yaml"]
    resolved = leaves(printed(["fit", *options, "--config", str(path)], capsys))
    for key, value in leaves(content).items():
        if not key.endswith(("class_path", "logger")):  # a short name becomes a full one
            assert resolved[key] == value, key


@every_file
def test_header_shows_the_command(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    header = re.match(r"(#.*\n)*", path.read_text())
    assert header is not None
    text = re.sub(r"\\\n", " ", re.sub(r"(?m)^# ?", "", header.group()))
    commands = [shlex.split(command) for command in re.findall("python train.py (.*)", text)]
    assert commands, f"{path.name} does not say how to use it"
    shown = [command for command in commands if command[0] in LIGHTNING]
    for command in shown:
        printed(command, capsys)
    assert not shown or any(str(path.relative_to(ROOT)) in command for command in shown)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_its_values_and_no_more(method: str) -> None:
    """Options of the method alone, and only those that differ from the signature, so that a default stands once."""
    path = ROOT / f"configs/method/{method}.yaml"
    assert path.is_file(), f"{method} has no config"
    config = yaml.safe_load(path.read_text())
    assert config.keys() == {"model"}, "options of the trainer and of data stand in recipes"
    assert config["model"].keys() == {"init_args"}
    bases = [base for base in reversed(METHODS[method].__mro__) if not issubclass(Task, base)]
    parameters = {name: p for base in bases for name, p in signature(base.__init__).parameters.items()}
    for name, value in config["model"]["init_args"].items():
        assert name in parameters, f"{name} is no option of the method: optimizer, schedule and task stand in recipes"
        assert value != parameters[name].default, f"{name}: {value} is the default"


def test_every_command_of_a_sweep_parses(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    sweep = yaml.safe_load(SWEEP.read_text())
    assert (ROOT / sweep["program"]).is_file()
    assert sweep["method"] in ("grid", "random", "bayes")
    assert sweep["metric"]["name"].startswith("val/"), "test images choose nothing"
    head, program, *command = sweep["command"][1:]
    assert (head, program) == ("${interpreter}", "${program}")
    place = command.index("${args}")
    assert all(parameter.keys() == {"values"} for parameter in sweep["parameters"].values())
    longest = max(len(parameter["values"]) for parameter in sweep["parameters"].values())
    for number in range(longest):
        chosen = {k: p["values"][min(number, len(p["values"]) - 1)] for k, p in sweep["parameters"].items()}
        args = [f"--{key}={value}" for key, value in chosen.items()]
        resolved = leaves(printed([*command[:place], *args, *command[place + 1 :]], capsys))
        assert resolved["seed_everything"] == chosen["seed_everything"]
        assert resolved["model.init_args.lr"] == chosen["model.lr"]
