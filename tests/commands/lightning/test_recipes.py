"""Options of a recipe in front of those of the user; tests/test_recipes.py reads the recipes that ship."""

from pathlib import Path

import pytest
import yaml

from commands.lightning.recipes import apply_recipe, read_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    content = {"method": "gps", "data": "VTAB", "all": {"model.lr": 0.1, "ema.decay": 0.9, "trainer.max_epochs": 3}}
    content["tasks"] = {"dtd": {"model.gps_k": 2}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return str(tmp_path / "mine.yaml")


def test_options_of_the_user_come_last(recipe: str) -> None:
    args = apply_recipe(recipe, "fit", ["--data.task", "dtd", "--model.lr", "0.5"])
    front = ["--method", "gps", "--data", "VTAB", "--model.lr=0.1", "--ema.decay=0.9", "--trainer.max_epochs=3"]
    assert args == [*front, "--model.gps_k=2", "--data.task", "dtd", "--model.lr", "0.5"]


def test_options_of_other_subcommands_are_left_out(recipe: str) -> None:
    args = apply_recipe(recipe, "test", ["--data.task", "dtd"])
    assert "--ema.decay=0.9" not in args
    assert "--model.lr=0.1" in args


def test_a_stacked_method(recipe: str) -> None:
    assert apply_recipe(recipe, "fit", ["--method", "gps+velora", "--data.task", "dtd"])[:2] == [
        "--method",
        "gps+velora",
    ]
    with pytest.raises(ValueError, match="is one of gps; leave one of the two out"):
        apply_recipe(recipe, "fit", ["--method", "ssf", "--data.task", "dtd"])


def test_content(recipe: str) -> None:
    assert read_recipe(recipe)["tasks"] == {"dtd": {"model.gps_k": 2}}
    assert read_recipe("vtab/ssf")["method"] == "ssf"
