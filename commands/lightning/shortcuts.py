"""Short forms of the command line, rewritten into options that LightningCLI has."""

import json
import re
from types import ModuleType
from typing import Any, NamedTuple

from lightning import LightningDataModule

import datamodules
import methods
from commands.lightning.arguments import files_first, pop_flag
from commands.lightning.images import image_flags
from commands.lightning.names import nearest
from commands.lightning.recipes import recipe_of
from commands.lightning.saved import LIGHTNING_NAMES, Saved, read_saved
from lightning_modules import TASKS
from methods import METHODS, PEFTMethod, compose


class Expanded(NamedTuple):
    """A command line in the options of LightningCLI.

    Args:
        args: Subcommand and options.
        saved: The checkpoint of ``--ckpt_path``, if it names one.
        recipe: Name of the recipe and its dataset, if there is one. Ranks that Lightning starts have none.
    """

    args: list[str]
    saved: Saved | None
    recipe: tuple[str, str | None] | None = None

    @property
    def subcommand(self) -> str:
        return self.args[0]


def expand(args: list[str]) -> Expanded:
    """Rewrite ``--recipe``, ``--method``, ``--task`` and ``--images``, and bring class and options of a checkpoint.

    Flags win over config files, those over a recipe, and a recipe over the checkpoint. Ranks that Lightning starts
    expand the expanded command line again, so a second expansion changes no value.

    Args:
        args: Subcommand and options.

    Raises:
        ValueError: If a name is unknown, or the checkpoint is damaged.
    """
    subcommand, *rest = args
    name, rest = pop_flag(rest, "--recipe")
    recipe = recipe_of(name, subcommand, rest) if name is not None else None
    method, rest = pop_flag(rest, "--method")
    task, rest = pop_flag(rest, "--task")
    images, rest = pop_flag(rest, "--images")
    if task is not None and method is None and recipe is None:
        raise ValueError(f"--task {task} needs a --method")
    task = task if recipe is None else recipe.task
    if method is not None:
        rest = ["--model", class_path(method, task), *rest]
    model, data = (pop_flag(rest, flag)[0] for flag in ("--model", "--data"))
    check_class("data", data, datamodules, LightningDataModule)
    check_class("model", model, methods, PEFTMethod)
    configs: list[dict[str, Any]] = []
    path, saved = pop_flag(rest, "--ckpt_path")[0], None
    if path is not None and not path.strip():
        raise ValueError(f"ckpt_path={path!r}: expected a checkpoint file or an adapter folder")
    if path and path not in LIGHTNING_NAMES:
        saved = read_saved(path, subcommand, model)
        configs.append(config_of(saved, subcommand))
    if images is not None:
        rest += image_flags(images, subcommand, rest, path, list(saved.classes) if saved else [])
    if recipe is not None:
        check_class("data", recipe.config["data"]["class_path"], datamodules, LightningDataModule)
        of_model = {"class_path": class_path(recipe.method, task)} | recipe.config.get("model", {})
        configs.append(recipe.config | {"model": of_model})
    if any(word in ("-c", "--config") or word.startswith("--config=") for word in rest):
        # config files may hold options of a class without the class, which so must stand in front of them too
        configs.append({kind: name for kind, name in {"model": model, "data": data}.items() if name is not None})
    words = [word for config in configs if config for word in ("--config", json.dumps(config))]
    dataset = pop_flag(rest, "--data.task")[0]
    return Expanded([subcommand, *files_first([*words, *rest])], saved, None if name is None else (name, dataset))


def class_path(method: str, task: str | None) -> str:
    """Path of the class that joins methods with a task.

    Args:
        method: Names of methods, joined by ``+``.
        task: Name of the task, ``classification`` by default.
    """
    names = [nearest(name, METHODS, "method") for name in method.split("+")]
    task = nearest(task or "classification", TASKS, "task")
    cls = compose(*(METHODS[name] for name in names), task=TASKS[task])
    return f"{cls.__module__}.{cls.__qualname__}"


def check_class(kind: str, name: str | None, module: ModuleType, base: type) -> None:
    """Refuse the short name of a class that a module does not have, with the most similar names.

    Args:
        kind: What the message calls the class.
        name: Name that the user gave; a path with dots is left to the parser.
        module: Where short names are looked up.
        base: Base of all valid classes.
    """
    if name is None or not re.fullmatch(r"\w+", name) or hasattr(module, name):
        return
    classes = [cls for cls in vars(module).values() if isinstance(cls, type) and issubclass(cls, base)]
    nearest(name, [cls.__name__ for cls in classes if cls is not PEFTMethod], kind)


def config_of(saved: Saved, subcommand: str) -> dict[str, Any]:
    """Config with the class and the options of a checkpoint."""
    config: dict[str, Any] = {"model": {"class_path": saved.class_path, "init_args": saved.options}}
    if subcommand == "fit" and saved.ema_decay is not None:
        config["ema"] = {"decay": saved.ema_decay}
    return config
