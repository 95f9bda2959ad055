"""Options that no run can have (faults 1 to 5, 32, 36, 37 of the list, and their kind)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands.lightning.test_strict_yaml import BOMB
from tests.conftest import ROOT
from tests.faults.conftest import Refused
from tests.support.command_line import Answer, folders


def with_method(tiny: list[str], method: str, *options: str) -> list[str]:
    """The tiny fit with another method."""
    return [*(method if word == "ssf" else word for word in tiny), *options]


def test_01_an_unknown_method(tiny: list[str], refused: Refused) -> None:
    refused(*with_method(tiny, "loraa"), says=("unknown method 'loraa'; nearest: lora", "known: adapter, adaptformer"))


def test_02_a_target_that_matches_nothing(tiny: list[str], refused: Refused) -> None:
    refused(*with_method(tiny, "lora", '--model.lora_targets=["projj"]'), says=("projj", "proj"))


def test_03_a_backbone_without_tokens(base: list[str], refused: Refused) -> None:
    model = ["--method", "vpt", "--model.backbone", "resnet10t", "--model.pretrained=false"]
    refused("fit", *model, *base, says=("prompts join the tokens", "ResNet", "ssf, lora"))


@pytest.mark.parametrize(
    ("method", "option", "messages"),
    [
        ("lora", "lora_rank=0", ("lora_rank=0",)),
        ("lora", "lora_rank=4000", ("4000", "48")),
        ("adapter", "adapter_dim=-1", ("adapter_dim=-1",)),
        ("vpt", "prompt_length=0", ("prompt_length=0",)),
    ],
)
def test_04_sizes_out_of_range(
    method: str, option: str, messages: tuple[str, ...], tiny: list[str], refused: Refused
) -> None:
    refused(*with_method(tiny, method, f"--model.{option}"), says=messages)


def test_05_a_budget_larger_than_the_backbone(tiny: list[str], refused: Refused) -> None:
    refused(
        *with_method(tiny, "spt", "--model.spt_budget=10"),
        says=("a budget of 10,000,000 parameters cannot be met", "pool"),
    )


@pytest.mark.parametrize(("method", "option"), [("gps", "gps_k=0"), ("spt", "spt_budget=0")])
def test_05_nothing_selected(method: str, option: str, tiny: list[str], refused: Refused) -> None:
    refused(*with_method(tiny, method, f"--model.{option}"), says=f"{option.partition('=')[0]}=0")


@pytest.mark.parametrize(
    ("option", "messages"),
    [
        ("--trainer.max_epochs=-5", ("max_epochs", "-5")),
        ("--trainer.devices=0", ("trainer.devices=0", "auto")),
        ("--trainer.devices=cpu,cuda:0", ("names cpu, cuda:0", "--trainer.accelerator")),
        ("--trainer.accelerator=cpu,gpu", ("expected one kind of device",)),
        ("--trainer.strategy=dpp", ("trainer: ", "dpp")),
        ("--trainer.gradient_clip_val=-1", ("gradient_clip_val=-1", "at least 0")),
        ("--checkpoint.save_top_k=-7", ("trainer: ", "save_top_k=-7")),
        ("--checkpoint.mode=up", ("trainer: ", "got up")),
        ("--data.root=", ("data.root=''", "the hub")),
        ("--ckpt_path=", ("ckpt_path=''", "an adapter folder")),
        ("--ckpt_path", ("--ckpt_path --run_root", "expected a value")),
        ("--seed_everything=-3", ("seed_everything=-3", "from 0 to")),
    ],
)
def test_32_devices_that_do_not_exist(
    option: str, messages: tuple[str, ...], tiny: list[str], refused: Refused
) -> None:
    refused(*tiny, option, says=messages)


def test_36_wandb_without_a_server(
    tiny: list[str], call: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE")  # of tests/conftest.py
    answer = call(*tiny, "--config", ROOT / "configs/logger/wandb.yaml", "--run_root", tmp_path / "runs")
    assert answer.code == 0, answer.err
    assert answer.out.count("W&B at 127.0.0.1:9 cannot be reached") == 1
    (folder,) = folders(tmp_path / "runs")
    assert list((folder / "wandb").glob("offline-run-*"))
    assert (folder / "result.json").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--compile", "fast"], "compile='fast': expected default, reduce-overhead, max-autotune or null"),
        (["--data.augmentation=randag"], "randaug or flip_randaug; did you mean randaug?"),
        (["--model.lr=nan"], "model.lr='nan': expected a number"),
        (["--trainer.max_epoch=1"], "unknown option --trainer.max_epoch; did you mean --trainer.max_epochs?"),
    ],
)
def test_37_one_line_for_a_bad_option(words: list[str], line: str, tiny: list[str], refused: Refused) -> None:
    first, *others = refused(*tiny, *words, code=2).splitlines()
    assert first.startswith("error: ")
    assert first.endswith(line)
    assert others == ["(train.py fit --help explains each option)"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("trainer:\n  max_epochs: 1\n  max_epochs: 2\n", "'max_epochs' stands here a second time"),
        ("trainer: {max_epochs: [1}", "line 1"),
        ("trainer: {max_epochs: many}", "max_epochs"),
        ("trainer: {max_epoch: 1}", "did you mean --trainer.max_epochs"),
        (BOMB, "aliases stand for more than 100,000 values"),
        ("[" * 100_000, "nesting depth"),
    ],
)
def test_37_bad_configs(content: str, message: str, tiny: list[str], refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    refused(*tiny, "--config", tmp_path / "bad.yaml", code=2, says=message)


def test_37_a_flag_before_a_file_is_a_conflict_too(
    fitted: Path, base: list[str], refused: Refused, tmp_path: Path
) -> None:
    config: Any = fitted / "config.yaml"
    last = fitted / "checkpoints/last.ckpt"
    message = "lr: 0.001 in the checkpoint, 0.9 here"
    refused("fit", "--model.lr", "0.9", "--config", config, "--ckpt_path", last, *base, says=message)
