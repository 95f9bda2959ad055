"""Where the values of a run are from."""

from pathlib import Path

import pytest
from jsonargparse import Namespace

from commands.lightning.origins import commented, leaves, values_of_recipe
from commands.lightning.recipes import read_recipe, recipe_files

TEXT = """# python train.py fit --recipe mine
# Paper (arXiv:0000.00000): released scripts/train.sh
method: ssf
data: VTAB
all:
  model.lr: 0.1 # l.3: peak
  model.optimizer: adam # other/solver.py l.7
  model.weight_decay: 0.0 # l.8
  model.members: [1, 2] # ours
  model.drop_path: 0.0
tasks: # configs/*.yaml
  cifar: {model.lr: 0.2, data.batch_size: 16}
  kitti: {model.lr: 0.3, data.batch_size: 32} # issue 5
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(TEXT)
    return str(path)


def test_comments() -> None:
    found = {(block, option): (source, line) for block, option, source, line in commented(TEXT, "kitti")}
    assert found == {
        ("all", "model.lr"): ("scripts/train.sh l.3: peak", 6),
        ("all", "model.optimizer"): ("other/solver.py l.7", 7),
        ("all", "model.weight_decay"): ("other/solver.py l.8", 8),  # of the file that is named last
        ("all", "model.members"): ("ours", 9),
        ("all", "model.drop_path"): ("Paper (arXiv:0000.00000): released scripts/train.sh", 10),
        ("task", "model.lr"): ("issue 5", 13),
        ("task", "data.batch_size"): ("issue 5", 13),
    }
    tasks = {option: source for block, option, source, _ in commented(TEXT, "cifar") if block == "task"}
    assert tasks == {"model.lr": "configs/*.yaml", "data.batch_size": "configs/*.yaml"}


def test_task_wins_over_all_and_recipe_over_source(recipe: str, tmp_path: Path) -> None:
    values = values_of_recipe(recipe, "kitti")
    assert values["model.lr"][1:] == (0.3, "issue 5", f"{tmp_path.name}/mine.yaml:13")
    assert values["model.weight_decay"].value == 0.0
    assert values_of_recipe(recipe, None)["model.lr"].value == 0.1
    own = tmp_path / "own.yaml"
    own.write_text(f"source: {recipe}\nall:\n  model.drop_path: 0.5 # mine\n")
    values = values_of_recipe(str(own), "kitti")
    assert values["model.drop_path"][1:] == (0.5, "mine", f"{tmp_path.name}/own.yaml:3")
    assert values["model.lr"].value == 0.3


@pytest.mark.parametrize("name", list(recipe_files()))
def test_every_value_of_the_shipped_recipes_has_a_source(name: str) -> None:
    recipe = read_recipe(name)
    for task, own in recipe.get("tasks", {None: {}}).items():
        values = values_of_recipe(name, task)
        assert {option: value.value for option, value in values.items()} == recipe["all"] | own
        assert all(value.source and not value.source.startswith("l.") for value in values.values())


def test_leaves() -> None:
    options = Namespace(model=Namespace(class_path="A", init_args=Namespace(lr=0.1)), seed_everything=3, config=None)
    assert leaves(options) == {"model.class_path": "A", "model.lr": 0.1, "seed_everything": 3}
