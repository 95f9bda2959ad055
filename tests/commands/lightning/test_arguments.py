"""Lists of command line arguments."""

import pytest

import datamodules
import methods
from commands.lightning.arguments import arguments, files_first, flags, nested, pop_flag


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


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("--model.lr 0.9 --config a.yaml -c b.yaml", "--config a.yaml -c b.yaml --model.lr 0.9"),
        ("--a=1 --b -2 --config=a.yaml --a=3", "--config=a.yaml --a=1 --b -2 --a=3"),
        ("--data.root x --data VTAB --model.lr 1", "--data VTAB --data.root x --model.lr 1"),
        ("--l+=A --l.x 1 --l+=B --l.x 2", "--l+=A --l.x 1 --l+=B --l.x 2"),
        ("--help", "--help"),
    ],
)
def test_files_first(args: str, expected: str) -> None:
    assert files_first(args.split()) == expected.split()
    assert files_first(expected.split()) == expected.split()


def test_options_as_a_config() -> None:
    options = {"model.lr": 1, "model.backbone_args.depth": 2, "trainer.max_epochs": 3, "seed_everything": 4}
    assert nested(options) == {
        "model": {"init_args": {"lr": 1, "backbone_args": {"depth": 2}}},
        "trainer": {"max_epochs": 3},
        "seed_everything": 4,
    }


def test_arguments_of_classes_and_their_bases() -> None:
    assert {"ssf_std", "lora_rank", "lr", "backbone"} <= arguments(methods)
    assert {"root", "batch_size"} <= arguments(datamodules)
    assert not {"kwargs", "return"} & arguments(methods)
