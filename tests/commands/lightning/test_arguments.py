"""Lists of command line arguments."""

import pytest

import datamodules
import methods
from commands.lightning.arguments import arguments, flags, pop_flag


@pytest.mark.parametrize(
    ("args", "value", "rest"),
    [
        (["--a", "1", "--b=2"], "1", ["--b=2"]),
        (["--a=1", "--b=2"], "1", ["--b=2"]),
        (["--a", "1", "x", "--a=2"], "2", ["--a", "1", "x"]),
        (["--a"], None, ["--a"]),
        (["--ab", "1"], None, ["--ab", "1"]),
        (["--a="], "", []),
    ],
)
def test_the_last_flag_counts(args: list[str], value: str | None, rest: list[str]) -> None:
    assert pop_flag(args, "--a") == (value, rest)


def test_flags() -> None:
    options = {"model.lr": 1e-3, "model.head_init": "vpt", "checkpoint.monitor": None, "model.targets": ["q", "v"]}
    assert flags(options) == [
        "--model.lr=0.001",
        "--model.head_init=vpt",
        "--checkpoint.monitor=null",
        '--model.targets=["q", "v"]',
    ]


def test_arguments_of_classes_and_their_bases() -> None:
    assert {"ssf_std", "lora_rank", "lr", "backbone"} <= arguments(methods)
    assert {"root", "batch_size"} <= arguments(datamodules)
    assert not {"kwargs", "return"} & arguments(methods)
