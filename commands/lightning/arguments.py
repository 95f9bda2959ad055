"""Lists of command line arguments, and the arguments of classes."""

import json
from types import ModuleType
from typing import Any


def pop_flag(args: list[str], flag: str) -> tuple[str | None, list[str]]:
    """Take a flag out of a command line.

    Args:
        args: The command line.
        flag: Name with its dashes, such as ``--method``.

    Returns:
        Value of the last ``--flag value`` or ``--flag=value``, because the last one counts, or None; and the arguments
        without it.
    """
    for i, arg in reversed(list(enumerate(args))):
        if arg == flag and i + 1 < len(args):
            return args[i + 1], args[:i] + args[i + 2 :]
        if arg.startswith(f"{flag}="):
            return arg.removeprefix(f"{flag}="), args[:i] + args[i + 1 :]
    return None, args


def flags(options: dict[str, Any]) -> list[str]:
    """Options as flags: strings as they are, other values as JSON."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in options.items()]


def arguments(module: ModuleType) -> set[str]:
    """Names of all arguments of the classes of a module, with those of their bases in this project."""
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    bases = {base for cls in classes for base in cls.__mro__ if not base.__module__.startswith(("torch", "lightning."))}
    found = {name for base in bases for name in getattr(vars(base).get("__init__"), "__annotations__", {})}
    return found - {"return", "kwargs"}
