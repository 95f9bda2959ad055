"""Tasks, found by importing the files of this folder: a new file is a new task."""

import importlib
import pkgutil

from lightning_modules.task import Task

__all__ = ["TASKS", "Task"]

TASKS: dict[str, type[Task]] = {}
"""Classes of all tasks by the names of their files: ``classification`` -> ``Classification``."""
CONTRACTS = ("task", "adapted", "named_classes", "text_task", "timm_head")  # files with abstract classes


def check_complete(task: type[Task]) -> None:
    """Refuse a task that lacks a verb of the contract.

    Raises:
        TypeError: With the names of the verbs.
    """
    missing = sorted(getattr(task, "__abstractmethods__", ()))
    missing += [] if hasattr(task, "headline") else ["headline"]
    if missing:
        raise TypeError(f"{task.__module__}.{task.__name__} is no complete task: it lacks {', '.join(missing)}")


def discover() -> None:
    """Fill ``TASKS``."""
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        if info.ispkg or info.name in CONTRACTS:
            continue
        module = importlib.import_module(f"lightning_modules.{info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Task) and value.__module__ == module.__name__:
                check_complete(value)
                TASKS[info.name] = value


discover()
