"""Facts about source files, computed from their text without importing them."""

import ast
import io
import re
import tokenize
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath
from typing import NamedTuple

# from the ground up; a folder imports its own floor's files and those of lower floors
FLOORS: tuple[tuple[str, ...], ...] = (
    ("checkpoints", "backbones"),
    ("lightning_modules",),
    ("datamodules",),
    ("callbacks",),
    ("methods",),
    ("commands",),
    ("train",),
)
FLOOR_OF = {folder: number for number, floor in enumerate(FLOORS) for folder in floor}
# what the __init__.py of a package may define without a test file of its own
DISCOVERY = {"discover", "__getattr__"}


class Import(NamedTuple):
    """One import of a module of this project."""

    module: str
    line: int
    at_module_level: bool


@dataclass(frozen=True)
class Source:
    """One source file.

    Args:
        path: Path below the root of the repository, with slashes.
        text: Content of the file.
    """

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def module(self) -> str:
        """Name under which the file is imported."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def folder(self) -> str:
        return self.module.partition(".")[0]

    @property
    def lines(self) -> int:
        return len(self.text.splitlines())

    @property
    def test_path(self) -> str:
        """Path of the test file of module ``a.b``: ``tests/a/test_b.py``, whether ``b`` is a file or a package."""
        *folders, name = self.module.split(".")
        return str(PurePosixPath("tests", *folders, f"test_{name}.py"))

    @property
    def needs_test(self) -> bool:
        """False for the ``__init__.py`` of a package that defines nothing, or finds the files of its folder."""
        if not self.path.endswith("__init__.py"):
            return True
        defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        return any(isinstance(node, defined) and node.name not in DISCOVERY for node in self.tree.body)

    def place(self, node: ast.AST) -> str:
        """``path:line`` of a node."""
        return f"{self.path}:{getattr(node, 'lineno', 1)}"


def read_sources(root: Path) -> list[Source]:
    """All source files: what ``[tool.mypy] files`` of pyproject.toml names, the tests and benchmarks are no sources."""
    places = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["mypy"]["files"]
    paths = [path for place in places for path in (sorted((root / place).rglob("*.py")) or [root / place])]
    return [Source(path.relative_to(root).as_posix(), path.read_text()) for path in paths]


def imports(source: Source, modules: Iterable[str]) -> list[Import]:
    """Imports of the modules ``modules``; those under ``if TYPE_CHECKING`` do not run, so they do not count.

    Raises:
        ValueError: If an import is relative, because its module is not named.
    """
    known = set(modules)
    found = []
    for node, at_module_level in import_statements(source.tree, True):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{source.place(node)}: relative import; expected the full name of the module")
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            names = [alias.name for alias in node.names]
        for name in names:
            # ``from methods.core import base`` names a module, ``from methods.core.base import PEFTMethod`` does not
            module = name if name in known else name.rpartition(".")[0]
            if module in known:
                found.append(Import(module, node.lineno, at_module_level))
    return list(dict.fromkeys(found))


def import_statements(node: ast.AST, at_module_level: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from import_statements(other, at_module_level)
        elif isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, at_module_level
        else:
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from import_statements(child, at_module_level and not inside)


def imports_up(sources: Iterable[Source]) -> list[str]:
    """Imports of a higher floor, and of another folder of the same floor; ``path:line imports module``.

    An import inside a function counts where it runs up. It does not count between two folders of one floor, because
    they may use each other as long as neither needs the other to be imported.
    """
    sources = list(sources)
    modules = [source.module for source in sources]
    offenders = []
    for source in sources:
        for used in imports(source, modules):
            folder = used.module.partition(".")[0]
            here, there = FLOOR_OF[source.folder], FLOOR_OF[folder]
            beside = here == there and folder != source.folder and used.at_module_level
            if there > here or beside:
                offenders.append(f"{source.path}:{used.line} imports {used.module}")
    return offenders


def import_circle(sources: Iterable[Source]) -> list[str]:
    """Modules of one circle of imports, the first of them again at the end; empty if there is none."""
    sources = list(sources)
    modules = [source.module for source in sources]
    graph = {s.module: {used.module for used in imports(s, modules)} - {s.module} for s in sources}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def long_classes(sources: Iterable[Source], limit: int) -> list[str]:
    """Classes of more than ``limit`` lines; ``path:line name has n lines``."""
    return [
        f"{source.place(node)} {node.name} has {lines} lines"
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ClassDef) and (lines := (node.end_lineno or 0) - node.lineno + 1) > limit
    ]


def lines_with(sources: Iterable[Source], pattern: str) -> list[str]:
    """Lines in which a regular expression is found; ``path:line``."""
    return [
        f"{source.path}:{number}"
        for source in sources
        for number, line in enumerate(source.text.splitlines(), start=1)
        if re.search(pattern, line)
    ]


def parts_by_position(sources: Iterable[Source]) -> list[str]:
    """Places that take the inputs or the targets of a batch by ``batch[0]`` or ``batch[1]``; ``path:line``."""
    return [
        source.place(node)
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Name)
        and node.value.id.endswith("batch")
        and isinstance(node.slice, ast.Constant)
        and node.slice.value in (0, 1)
    ]


def arguments_of_any(sources: Iterable[Source], name: str) -> list[str]:
    """Arguments called ``name`` whose type is ``Any`` or missing; ``path:line``."""
    return [
        source.place(node)
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, ast.arg)
        and node.arg == name
        and (node.annotation is None or ast.unparse(node.annotation) == "Any")
    ]


def ignored_types(sources: Iterable[Source]) -> list[str]:
    """Comments that switch the type checker off; ``path:line``."""
    return [
        f"{source.path}:{token.start[0]}"
        for source in sources
        for token in tokenize.generate_tokens(io.StringIO(source.text).readline)
        if token.type == tokenize.COMMENT and "type: ignore" in token.string
    ]
