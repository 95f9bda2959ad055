"""Options of a recipe for a command line; tests/test_recipes.py reads the recipes that ship."""

from pathlib import Path

import pytest
import yaml

from commands.lightning.recipes import read_recipe, recipe_files, recipe_of


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    content = {"method": "gps", "data": "VTAB", "all": {"model.lr": 0.1, "ema.decay": 0.9, "trainer.max_epochs": 3}}
    content["tasks"] = {"dtd": {"model.gps_k": 2}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return str(tmp_path / "mine.yaml")


def test_options_of_a_task(recipe: str) -> None:
    found = recipe_of(recipe, "fit", ["--data.task", "dtd", "--model.lr", "0.5"])
    assert found.method == "gps"
    assert found.config == {
        "data": {"class_path": "VTAB"},
        "model": {"init_args": {"lr": 0.1, "gps_k": 2}},
        "ema": {"decay": 0.9},
        "trainer": {"max_epochs": 3},
    }


def test_options_of_other_subcommands_are_left_out(recipe: str) -> None:
    assert recipe_of(recipe, "test", ["--data.task", "dtd"]).config.keys() == {"data", "model", "trainer"}


def test_a_stacked_method(recipe: str) -> None:
    assert recipe_of(recipe, "fit", ["--method", "gps+velora", "--data.task", "dtd"]).method == "gps+velora"
    with pytest.raises(ValueError, match="is one of gps; leave one of the two out"):
        recipe_of(recipe, "fit", ["--method", "ssf", "--data.task", "dtd"])


def test_content(recipe: str) -> None:
    assert read_recipe(recipe)["tasks"] == {"dtd": {"model.gps_k": 2}}
    assert read_recipe("vtab/ssf")["method"] == "ssf"


def test_values_of_the_source_hold_where_the_recipe_has_none(tmp_path: Path) -> None:
    """A file of one's own, whose source is another recipe, whose source is a file of ``configs/recipe/source``."""
    own = tmp_path / "mine.yaml"
    own.write_text("{source: vtab/ssf, all: {model.warmup_epochs: 3}, tasks: {dtd: {model.lr: 0.25}}}")
    recipe, above = read_recipe(str(own)), read_recipe("vtab/ssf")
    assert recipe["method"] == "ssf"
    assert recipe["all"] == above["all"] | {"model.warmup_epochs": 3}
    assert recipe["tasks"]["dtd"] == above["tasks"]["dtd"] | {"model.lr": 0.25}
    assert recipe["tasks"]["cifar"] == above["tasks"]["cifar"]
    assert above["all"]["model.warmup_inside"], "of configs/recipe/source/ssf.yaml"


def test_names_of_recipes_are_without_sources() -> None:
    names = recipe_files()
    assert "vtab/ssf" in names
    assert not any(name.startswith("source/") for name in names)


def test_a_source_that_leads_back(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(f"{{method: gps, data: VTAB, source: {second}}}")
    second.write_text(f"{{source: {first}}}")
    with pytest.raises(ValueError, match="has it as a source itself; leave one of them out"):
        read_recipe(str(first))
