"""Where the values of a run are from: a line of its recipe with the source, the command line, or a default."""

import json
import re
from collections.abc import Iterator
from pkgutil import resolve_name
from typing import Any, NamedTuple

import yaml
from jsonargparse import ArgumentParser, Namespace

from commands.lightning.recipes import recipe_and_sources

FILE = re.compile(r"[\w./*-]+\.(?:py|sh|yaml|ipynb)\b")
GIVEN, DEFAULT = "command line or config file", "default of Graft"


class Value(NamedTuple):
    """A value of a run.

    Args:
        option: Name as on the command line.
        value: The value.
        source: Paper, or file and line of the original script, as the comment in the recipe states it; ``GIVEN`` or
            ``DEFAULT`` for other values.
        place: File and line of the recipe; empty for other values.
    """

    option: str
    value: Any
    source: str
    place: str = ""

    @property
    def text(self) -> str:
        return self.value if isinstance(self.value, str) else json.dumps(self.value)


def values_of_run(recipe: str, task: str | None, options: Namespace, parser: ArgumentParser) -> list[Value]:
    """All values of a run: those of its recipe first, then those that the user gave, then defaults.

    Args:
        recipe: Name or path of the recipe.
        task: Dataset of the recipe, if it has values for each one.
        options: The parsed options.
        parser: Their parser.
    """
    found, defaults = leaves(options), default_values(options, parser)
    from_recipe = values_of_recipe(recipe, task)
    rows: dict[str, list[Value]] = {"recipe": [], GIVEN: [], DEFAULT: []}
    for option, value in found.items():
        published = from_recipe.get(option)
        if published is not None and published.value == value:
            rows["recipe"].append(published)
        elif published is not None:
            instead = f"{published.place} has {published.text} ({published.source})"
            rows[GIVEN].append(Value(option, value, GIVEN, instead))
        else:
            source = DEFAULT if option in defaults and defaults[option] == value else GIVEN
            rows[source].append(Value(option, value, source))
    return [row for group in rows.values() for row in group]


def leaves(options: Namespace | dict[str, Any]) -> dict[str, Any]:
    """Options by their names on the command line: ``{"model.lr": 0.1}``."""
    config = options.as_dict() if isinstance(options, Namespace) else options
    found = {}
    for key, value in config.items():
        inner = leaves(value) if isinstance(value, dict) and value else {"": value}
        found.update({f"{key}.{name}".removesuffix("."): leaf for name, leaf in inner.items()})
    return {name.replace(".init_args.", "."): value for name, value in found.items() if name != "config"}


def default_values(options: Namespace, parser: ArgumentParser) -> dict[str, Any]:
    """Defaults of the options of a run, by their names on the command line."""
    defaults = leaves(parser.get_defaults(skip_validation=True))
    for group in ("model", "data"):
        of_class = ArgumentParser(exit_on_error=False)
        of_class.add_class_arguments(resolve_name(options[group].class_path), group, fail_untyped=False)
        defaults |= leaves(of_class.get_defaults(skip_validation=True))
    return defaults


def values_of_recipe(name: str, task: str | None) -> dict[str, Value]:
    """Values of a recipe by option, with the comment beside each.

    A value without a comment has the comment beside the name of its block, or else the first line of its file that
    names the source.

    Args:
        name: Name or path of the recipe.
        task: Dataset whose values win over those of all, if the recipe has some.
    """
    blocks: dict[str, dict[str, Value]] = {"all": {}, "task": {}}
    for path, content in reversed(recipe_and_sources(name).items()):
        plain = {"all": content.get("all", {}), "task": content.get("tasks", {}).get(task, {})}
        for block, option, source, line in commented(path.read_text(), task):
            place = f"{path.parent.name}/{path.name}:{line}"
            blocks[block][option] = Value(option, plain[block][option], source, place)
    return blocks["all"] | blocks["task"]


def commented(text: str, task: str | None) -> Iterator[tuple[str, str, str, int]]:
    """Block (``all`` or ``task``), option, source and line number of every value in the text of a recipe.

    A comment that starts with a line number, such as ``l.12``, means the file that was named last above it.
    """
    lines, root = text.splitlines(), yaml.compose(text, Loader=yaml.SafeLoader)
    blocks = []
    for key, node in root.value if root else ():
        if key.value == "all":
            blocks.append(("all", node, behind(lines, key)))
        elif key.value == "tasks":
            own = [inner for name, inner in node.value if name.value == task]
            blocks += [("task", inner, behind(lines, inner) or behind(lines, key)) for inner in own]
    for block, node, outer in blocks:
        for option, value in node.value:
            number = option.start_mark.line
            source = behind(lines, value) or outer or header(lines)
            if source.startswith("l."):
                files = FILE.findall("\n".join(line.partition("#")[2] for line in lines[:number]))
                source = " ".join([*files[-1:], source])
            yield block, option.value, source, number + 1


def behind(lines: list[str], node: yaml.Node) -> str:
    """Comment behind a value, or behind the colon of a key; empty without one."""
    mark = node.end_mark
    comment = re.fullmatch(r":?\s*#\s*(.*?)\s*", lines[mark.line][mark.column :] if mark.line < len(lines) else "")
    return comment[1] if comment else ""


def header(lines: list[str]) -> str:
    """First line of the comment at the top of a file that is no command."""
    texts = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
    return next((text for text in texts if not text.startswith("python train.py")), "")
