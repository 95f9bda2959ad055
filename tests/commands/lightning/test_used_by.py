"""Which subcommand uses which option."""

from commands.lightning.used_by import USED_BY, used_by, used_flags
from train import LIGHTNING


def test_subcommands_exist() -> None:
    assert {name for names in USED_BY.values() for name in names} <= LIGHTNING.keys()


def test_used_by() -> None:
    assert used_by("fit", "ema.decay")
    assert not used_by("test", "ema.decay")
    assert used_by("score", "score.cache_dir")
    assert not used_by("predict", "members")
    assert used_by("predict", "model.lr"), "an option that is not listed is used by all"


def test_flags_of_a_fit_for_a_test() -> None:
    args = [
        "--method",
        "ssf",
        "--score.mode",
        "train",
        "--ema.decay=0.9",
        "--data.root",
        "x",
        "--test_after_fit",
        "true",
    ]
    assert used_flags("test", args) == ["--method", "ssf", "--data.root", "x"]
    assert used_flags("fit", args) == args
