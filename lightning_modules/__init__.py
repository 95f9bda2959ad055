"""The tasks, and the classes that join a method with a task."""

import importlib
import pkgutil
from inspect import signature
from typing import Any, TypeVar

from lightning_modules.base import TaskModule
from methods import METHODS, PEFTMethod

__all__ = ["TASKS", "TaskModule", "compose"]

Method = TypeVar("Method", bound=PEFTMethod)

TASKS: dict[str, type[TaskModule]] = {}
"""Every task by the name of its file, ``classification`` -> ``Classification``."""

for _info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
    _module = importlib.import_module(f"lightning_modules.{_info.name}")
    for _value in vars(_module).values():
        _defined_here = isinstance(_value, type) and _value.__module__ == _module.__name__
        if _defined_here and issubclass(_value, TaskModule) and _value is not TaskModule:
            TASKS[_info.name] = _value


def compose(method: type[Method], *more: type[PEFTMethod], task: type[TaskModule]) -> type[Method]:
    """Join methods with a task: ``compose(SSF, task=Classification)`` is ``class X(SSF, Classification)``.

    Args:
        method: The first method; its hooks run outermost.
        more: Methods stacked on it.
        task: The task.

    Returns:
        The class, also found as an attribute of ``lightning_modules`` by its short name.

    Raises:
        TypeError: If two of the classes declare the same argument: the second would silently keep its default.
    """
    bases: tuple[type, ...] = (method, *more, task)
    name = "".join(base.__name__ for base in bases)
    if name in globals():
        return globals()[name]
    owners: dict[str, type] = {}
    for base in dict.fromkeys(c for b in bases for c in b.__mro__ if c.__module__.startswith(("methods.", __name__))):
        for argument in signature(base.__init__).parameters if "__init__" in vars(base) else ():  # type: ignore[misc]
            if argument not in ("self", "kwargs") and owners.setdefault(argument, base) is not base:
                raise TypeError(f"{name}: {owners[argument].__name__} and {base.__name__} both declare {argument!r}")
    # jsonargparse prints the first docstring line of the class, which is the method's
    cls = type(name, bases, {"__module__": __name__, "__qualname__": name, "__doc__": method.__doc__})
    globals()[name] = cls
    return cls


def find(name: str) -> type | None:
    """The class of a short name, made now where it stacks several methods (``VeLoRALoRASegmentation``)."""
    for task in TASKS.values():
        rest, methods = name.removesuffix(task.__name__), []
        if rest == name:
            continue
        while rest:
            match = max(
                (m for m in METHODS.values() if rest.startswith(m.__name__)),
                key=lambda m: len(m.__name__),
                default=None,
            )
            if match is None:
                return None
            methods.append(match)
            rest = rest.removeprefix(match.__name__)
        if methods:
            return compose(*methods, task=task)
    return None


def __getattr__(name: str) -> Any:
    cls = find(name)
    if cls is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return cls


for _method in METHODS.values():
    for _task in TASKS.values():
        compose(_method, task=_task)
