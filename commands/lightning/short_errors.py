"""One short message for a command line that cannot be read."""

import argparse
import re
import sys
from typing import NoReturn

from commands.lightning.names import near

TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "NoneType": "null",
    "list": "a list",
    "dict": "a mapping",
}
UNKNOWN = re.compile(
    r"(?:[Oo]ption|[Kk]ey) '([\w.]+)' is not (?:accepted|expected)|(?:nested key|accept option) '([\w.]+)'"
)
REQUIRED = "the following arguments are required: "
KEY = re.compile(r'^( *)(?:- )?Parser key "([\w.]+)":', re.MULTILINE)
EXPECTED = re.compile(r"Expected an? (.+?)(?:\. Got value: (.*))?$", re.MULTILINE)
GIVEN = re.compile(r"Given value: (.*)$", re.MULTILINE)


class ShortErrors(argparse.ArgumentParser):
    """Parser that answers a bad command line with one message: the value, what is expected, and where help is."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            raise argparse.ArgumentError(None, message) from ex
        parser = getattr(ex, "subcommand_parser", None) or self
        program = parser.prog.replace(" [options]", "")
        sys.stderr.write(f"error: {short(message, self.known_options())}\n({program} --help explains each option)\n")
        self.exit(2)

    def known_options(self) -> dict[str, str]:
        """Options, by the words that users may take for them."""
        options = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        return {option.removeprefix("--"): option.removeprefix("--") for option in options}


def short(message: str, known: dict[str, str]) -> str:
    """The first mistake of a message of argparse or jsonargparse, in one line.

    Args:
        message: The message, in which jsonargparse lists all types that a value could have had.
        known: Options, by the words that users may take for them.
    """
    if message.startswith("unrecognized arguments: "):
        rest = message.removeprefix("unrecognized arguments: ").split()
        flags = [word.partition("=")[0] for word in rest if word.startswith("-")]
        return unknown(flags[0].lstrip("-"), known) if flags else f"{rest[0]}: expected an option, such as --option"
    if message.startswith(REQUIRED):
        names = [name.partition(".")[2] or name for name in message.removeprefix(REQUIRED).split(", ")]
        return f"required: {', '.join(f'--{name}' if name in known else name for name in names)}"
    keys = [(match.group(2), match) for match in KEY.finditer(message)]
    name = option_name([key for key, _ in keys])
    found = UNKNOWN.search(message)
    if found is not None:
        word = (found.group(1) or found.group(2)).rpartition("init_args.")[2]
        outer = name.partition(".")[0] if name in ("model", "data") or "." in name else ""
        return unknown(word if not outer or word.startswith(f"{outer}.") else f"{outer}.{word}", known)
    if not keys:
        return in_one_line(message)
    inner = block(message, keys[-1][1])
    needed = re.search(rf"{REQUIRED}([\w.]+)", inner)
    if needed is not None:
        return f"required: --{name}.{needed.group(1)}"
    expected = [meanings(match.group(1)) for match in EXPECTED.finditer(inner)]
    values = [match.group(2) for match in EXPECTED.finditer(inner) if match.group(2) is not None]
    values += [match.group(1) for match in GIVEN.finditer(inner)]
    if not expected or not values:
        return in_one_line(message)
    choices = list(dict.fromkeys(choice for choices in expected for choice in choices))
    similar = near(values[0], choices, cutoff=0.6)
    hint = f"; did you mean {similar[0]}?" if similar else ""
    *others, last = choices
    return f"{name}={values[0]!r}: expected {', '.join(others)}{' or ' if others else ''}{last}{hint}"


def in_one_line(message: str) -> str:
    return re.sub(r"\s*\n\s*", " ", message.strip())


def block(message: str, key: "re.Match[str]") -> str:
    """Lines about a key: those behind it with a deeper indentation."""
    lines = message[key.end() :].split("\n")
    indent = len(key.group(1))
    inside = []
    for line in lines[1:]:
        if line.strip() and len(line) - len(line.lstrip()) <= indent:
            break
        inside.append(line)
    return "\n".join(inside)


def option_name(keys: list[str]) -> str:
    """Name of an option whose groups and own name are keys of a message, such as ``data`` and ``batch_size``."""
    name = ""
    for key in keys:
        key = key.removeprefix("fit.").replace("init_args.", "")
        name = key if not name or key.startswith(f"{name}.") else f"{name}.{key}"
    return name


def meanings(kind: str) -> list[str]:
    """What a type stands for: its choices, or its name in plain words."""
    literal = re.fullmatch(r"typing\.Literal\[(.*)\]", kind)
    if literal is not None:
        return [choice.strip().strip("'\"") for choice in literal.group(1).split(",")]
    if "import path" in kind or "accessible" in kind:
        return ["the path of a class"]
    name = re.sub(r"<class '([\w.]+)'>", r"\1", kind)
    return [TYPES.get(name, name.rpartition(".")[2] if "[" not in name else name.replace("typing.", ""))]


def unknown(option: str, known: dict[str, str]) -> str:
    """Message about an option that does not exist, with the most similar one."""
    if option in known.values():
        return f"--{option} is an option of another --method, --task or --data: leave it out, or change those"
    similar = near(option, known, cutoff=0.7) or near(option.rpartition(".")[2], known, cutoff=0.7)
    return f"unknown option --{option}" + (f"; did you mean --{known[similar[0]]}?" if similar else "")
