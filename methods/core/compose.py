"""Composition of methods and a task into one class."""

import sys
from inspect import signature
from typing import Any, TypeVar

from lightning_modules import TASKS, Task
from methods.core.base import PEFTMethod

Method = TypeVar("Method", bound=PEFTMethod)


def compose(method: type[Method], *more: type[PEFTMethod], task: type[Task]) -> type[Method]:
    """Compose methods and a task: ``compose(SSF, task=Classification)`` is ``class X(SSF, Classification)``.

    Args:
        method: First method; its hooks run outermost.
        more: Further methods, stacked.
        task: The task.

    Returns:
        The class. Its module is ``methods``; its name joins the names of its bases, ``methods.SSFClassification``.

    Raises:
        TypeError: If two of the classes declare the same argument, because the second would keep its default silently.
    """
    bases: tuple[type, ...] = (method, *more, task)
    name = "".join(base.__name__ for base in bases)
    package = sys.modules["methods"]
    if name in vars(package):
        return vars(package)[name]
    owners: dict[str, type] = {}
    for base in dict.fromkeys(c for b in bases for c in b.__mro__ if is_own(c)):
        for argument in signature(base.__init__).parameters if "__init__" in vars(base) else ():  # type: ignore[misc]
            if argument not in ("self", "kwargs") and owners.setdefault(argument, base) is not base:
                raise TypeError(f"{name}: {owners[argument].__name__} and {base.__name__} both declare {argument!r}")
    # with the docstring of the method, because jsonargparse prints the first line of it
    cls = type(name, bases, {"__module__": "methods", "__qualname__": name, "__doc__": method.__doc__})
    setattr(package, name, cls)
    return cls


def is_own(cls: type[Any]) -> bool:
    """Whether a class is one of this project's methods or tasks."""
    return cls.__module__.startswith(("methods.", "lightning_modules."))


def find(name: str, methods: dict[str, type[PEFTMethod]]) -> type | None:
    """Composed class of a joined name such as ``VeLoRALoRASegmentation``; None if a part of the name is unknown.

    Args:
        name: Names of methods and a task, joined.
        methods: Classes of all methods.
    """
    for task in TASKS.values():
        rest, found = name.removesuffix(task.__name__), []
        if rest == name:
            continue
        while rest:
            match = max(
                (m for m in methods.values() if rest.startswith(m.__name__)),
                key=lambda m: len(m.__name__),
                default=None,
            )
            if match is None:
                return None
            found.append(match)
            rest = rest.removeprefix(match.__name__)
        if found:
            return compose(*found, task=task)
    return None
