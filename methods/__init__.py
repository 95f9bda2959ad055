"""Methods, found by importing the files of this folder: a new file is a new method.

Composed classes (methods joined with a task) are attributes of this package, such as ``methods.SSFClassification``.
"""

import importlib
import pkgutil
from typing import Any

from lightning_modules import TASKS
from methods.core.base import PEFTMethod
from methods.core.compose import compose, find

__all__ = ["METHODS", "PEFTMethod", "compose"]

METHODS: dict[str, type[PEFTMethod]] = {}
"""Classes of all methods by the names of their files: ``ssf`` -> ``SSF``."""


def __getattr__(name: str) -> Any:
    cls = find(name, METHODS)
    if cls is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return cls


def discover() -> None:
    """Fill ``METHODS`` and compose each method with each task, so that every composed class has a class path."""
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        if info.ispkg:
            continue
        module = importlib.import_module(f"methods.{info.name}")
        for value in vars(module).values():
            defined_here = isinstance(value, type) and value.__module__ == module.__name__
            if defined_here and issubclass(value, PEFTMethod) and value is not PEFTMethod:
                METHODS[info.name] = value
    for method in METHODS.values():
        for task in TASKS.values():
            compose(method, task=task)


discover()
