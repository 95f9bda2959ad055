"""Recipes: published settings of a method on a benchmark."""

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from commands.lightning import strict_yaml
from commands.lightning.arguments import nested, pop_flag
from commands.lightning.names import nearest
from commands.lightning.used_by import used_by

RECIPES = Path(__file__).resolve().parents[2] / "configs" / "recipe"
SOURCES = RECIPES / "source"  # values that recipes of one source have in common
RECIPE_KEYS = {"method": str, "data": str, "all": dict, "tasks": dict, "grid": dict, "source": str, "task": str}


class Recipe(NamedTuple):
    """A recipe for one command line.

    Args:
        method: Names of the methods.
        task: Name of the task.
        config: Data and options, in the form of a config file without the class of the model.
    """

    method: str
    task: str
    config: dict[str, Any]


def recipe_of(name: str, subcommand: str, args: list[str]) -> Recipe:
    """Method, task, data and options of a recipe for a command line, whose own options win over them.

    Args:
        name: Name of a recipe, such as ``vtab/ssf``, or the path of a file.
        subcommand: Options that it does not use are left out.
        args: The command line without the subcommand.

    Raises:
        ValueError: If the recipe has numbers per dataset and it is missing or unknown, or for another method or task.
    """
    import datamodules

    recipe = read_recipe(name)
    options = dict(recipe.get("all", {}))
    if "tasks" in recipe:
        task = pop_flag(args, "--data.task")[0]
        if task is None:
            raise ValueError(f"--recipe {name} needs a --data.task, one of: {', '.join(recipe['tasks'])}")
        task = getattr(getattr(datamodules, recipe["data"], None), "aliases", {}).get(task, task)
        options |= recipe["tasks"][nearest(task, recipe["tasks"], "task")]
    method = pop_flag(args, "--method")[0] or recipe["method"]
    if not set(recipe["method"].split("+")) <= set(method.split("+")):
        raise ValueError(f"--method {method}: --recipe {name} is one of {recipe['method']}; leave one of the two out")
    kind = recipe.get("task", "classification")
    asked = pop_flag(args, "--task")[0] or kind
    if asked != kind:
        raise ValueError(f"--task {asked}: --recipe {name} is one of {kind}; leave one of the two out")
    config = nested({key: value for key, value in options.items() if used_by(subcommand, key)})
    config["data"] = {"class_path": recipe["data"]} | config.get("data", {})
    return Recipe(method, kind, config)


def recipe_files() -> dict[str, Path]:
    """Files of the recipes that ship, by name such as ``vtab/ssf``."""
    paths = [path for path in sorted(RECIPES.rglob("*.yaml")) if SOURCES not in path.parents]
    return {path.relative_to(RECIPES).with_suffix("").as_posix(): path for path in paths}


def read_recipe(name: str) -> dict[str, Any]:
    """Read ``configs/recipe/NAME.yaml``, or a file of the user's own, and the common values of its source.

    Raises:
        ValueError: If there is no such recipe or file, or if it is not in the form of a recipe.
    """
    files = recipe_and_sources(name)
    recipe: dict[str, Any] = {}
    for values in files.values():
        recipe = joined(values, recipe)
    recipe.pop("source", None)
    if not {"method", "data"} <= recipe.keys():
        raise ValueError(
            f"recipe {next(iter(files))} says no method and data; expected the keys {', '.join(RECIPE_KEYS)}"
        )
    return recipe


def recipe_and_sources(name: str) -> dict[Path, dict[str, Any]]:
    """Content of the file of a recipe, then of its source, then of the source's own source, and so on.

    The key ``source`` names a file of ``configs/recipe/source``, another recipe, or a file of the user's own. Its
    values hold wherever the recipe has none.

    Raises:
        ValueError: If there is no such file, if it is not in the form of a recipe, or if it is its own source.
    """
    known = recipe_files()
    path = known.get(name, Path(name))
    if not path.is_file():
        nearest(name, known, "recipe")
    read = {path: read_values(path)}
    while "source" in read[path]:
        user, source = path, read[path]["source"]
        named = known | {path.stem: path for path in SOURCES.glob("*.yaml")}
        path = named.get(source, Path(source))
        if not path.is_file():
            nearest(source, named, f"source of recipe {user}:")
        if path in read:
            raise ValueError(f"recipe {user}: its source {source} has it as a source itself; leave one of them out")
        read[path] = read_values(path)
    return read


def joined(common: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Values of a recipe, and those of its source where it has none."""
    both = common | own | {key: common.get(key, {}) | own.get(key, {}) for key in ("all", "grid")}
    tasks, own_tasks = common.get("tasks", {}), own.get("tasks", {})
    if tasks:
        both["tasks"] = tasks | {task: tasks.get(task, {}) | options for task, options in own_tasks.items()}
    return {key: value for key, value in both.items() if value}


def read_values(path: Path) -> dict[str, Any]:
    """Read one file, without its source.

    Raises:
        ValueError: If it is not in the form of a recipe.
    """
    try:
        strict_yaml.check(path.read_text())
        recipe = yaml.load(path.read_text(), Loader=strict_yaml.Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe {path} is no YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"recipe {path} says no method and data; expected the keys {', '.join(RECIPE_KEYS)}")
    kinds = {key: RECIPE_KEYS[nearest(str(key), RECIPE_KEYS, f"key of recipe {path}:")] for key in recipe}
    values = list(recipe.items())
    for key, value in values:
        if not isinstance(value, kinds.get(key, dict)):
            raise ValueError(f"recipe {path}: {key} is {value!r}; expected a {kinds.get(key, dict).__name__}")
        if key == "tasks":
            values += [(f"tasks.{task}", options) for task, options in value.items()]
    return recipe
