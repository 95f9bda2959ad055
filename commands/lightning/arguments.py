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

    Raises:
        ValueError: If another flag stands in the place of the value.
    """
    for i, arg in reversed(list(enumerate(args))):
        if arg == flag and i + 1 < len(args):
            if args[i + 1].startswith("--"):
                raise ValueError(f"{flag} {args[i + 1]}: expected a value behind {flag}")
            return args[i + 1], args[:i] + args[i + 2 :]
        if arg.startswith(f"{flag}="):
            return arg.removeprefix(f"{flag}="), args[:i] + args[i + 1 :]
    return None, args


def flags(options: dict[str, Any]) -> list[str]:
    """Options as flags: strings as they are, other values as JSON."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in options.items()]


def files_first(args: list[str]) -> list[str]:
    """Put config files in front of flags, because flags win over files and the parser lets the last value win.

    Behind the files stand options of a whole group, such as ``--data CLASS``, because the parser knows the options of a
    class only behind the class. All others keep their order.

    Args:
        args: The command line without the subcommand.
    """
    groups: list[list[str]] = []
    for word in args:
        if word.startswith("--") or word == "-c" or not groups:
            groups.append([])
        groups[-1].append(word)
    names = [group[0].partition("=")[0] for group in groups]
    wholes = {name.partition(".")[0] for name in names if "." in name}

    def place(number: int) -> int:
        return 0 if names[number] in ("--config", "-c") else 1 if names[number] in wholes else 2

    return [word for number in sorted(range(len(groups)), key=place) for word in groups[number]]


def nested(options: dict[str, Any]) -> dict[str, Any]:
    """Options with dots, as on the command line, in the form of a config file."""
    config: dict[str, Any] = {}
    for name, value in options.items():
        *groups, last = name.split(".")
        if groups and groups[0] in ("model", "data"):
            groups.insert(1, "init_args")
        inner = config
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    return config


def arguments(module: ModuleType) -> set[str]:
    """Names of all arguments of the classes of a module, with those of their bases in this project."""
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    bases = {base for cls in classes for base in cls.__mro__ if not base.__module__.startswith(("torch", "lightning."))}
    found = {name for base in bases for name in getattr(vars(base).get("__init__"), "__annotations__", {})}
    return found - {"return", "kwargs"}
