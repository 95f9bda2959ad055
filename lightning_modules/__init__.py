"""Every task, found by importing the files of this folder: a new file is a new task."""

import importlib
import pkgutil

from lightning_modules.task import TaskModule

__all__ = ["TASKS", "TaskModule"]

TASKS: dict[str, type[TaskModule]] = {}
"""Every task by the name of its file, ``classification`` -> ``Classification``."""


def discover() -> None:
    """Fill ``TASKS``."""
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        if info.ispkg:
            continue
        module = importlib.import_module(f"lightning_modules.{info.name}")
        for value in vars(module).values():
            defined_here = isinstance(value, type) and value.__module__ == module.__name__
            if defined_here and issubclass(value, TaskModule) and value is not TaskModule:
                TASKS[info.name] = value


discover()
