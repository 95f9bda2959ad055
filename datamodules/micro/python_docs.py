"""Write the documentation of Python as texts: its language reference, and docstrings of its standard library."""

import ast
import hashlib
import json
import platform
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

SHORTEST, LONGEST = 40, 1500  # characters of a text; shorter ones say little, longer ones make batches slow
SHARES = {"train": 80, "val": 10, "test": 10}  # per cent of the names
# parts that an installation may lack, that are not documented for users, or that newer versions dropped
LEFT_OUT = {"distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "tkinter", "turtle", "turtledemo", "venv"}
MODULES = (
    "asyncio",
    "email",
    "http",
    "importlib",
    "inspect",
    "logging",
    "multiprocessing",
    "unittest",
    "urllib",
    "xml",
)
"""Classes of the second form: the modules and packages with the most docstrings."""


class Docstring(NamedTuple):
    """A docstring of the standard library, or a topic of the language reference.

    Args:
        name: Full name, such as ``json.JSONDecoder.decode``.
        module: Its module or package, such as ``json``; empty for a topic.
        kind: ``class``, ``function`` or ``topic``.
        text: The docstring without its indentation.
    """

    name: str
    module: str
    kind: str
    text: str


def build(output: Path) -> None:
    """Write two folders: ``instructions`` (a question about a name and its docstring) and ``modules`` (a docstring and
    its module), each with ``train.jsonl``, ``val.jsonl``, ``test.jsonl``; both or nothing.

    A text is in the split that the hash of its name gives, so that other texts do not move it. A text that appears
    twice is written once. ``info.json`` keeps the version of Python, because its documentation changes with it.

    Args:
        output: New folder.

    Raises:
        FileExistsError: If the folder exists.
        FileNotFoundError: If this Python has no source files of its standard library.
    """
    if output.exists():
        raise FileExistsError(f"output={str(output)!r} exists; remove it, or name another folder")
    docstrings = unique([*reference(), *standard_library()])
    missing = sorted(set(MODULES) - {docstring.module for docstring in docstrings})
    if missing:
        raise FileNotFoundError(
            f"this Python ({sys.executable}) has no source files of {', '.join(missing)}: use a Python whose standard "
            "library is not packed"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as temporary:
        root = Path(temporary) / output.name
        write(root / "instructions", [question(docstring) for docstring in docstrings])
        write(root / "modules", [{"name": d.name, "text": d.text, "label": d.module} for d in of_modules(docstrings)])
        root.rename(output)


def question(docstring: Docstring) -> dict[str, str]:
    """Question about a name or topic, and its docstring as the answer."""
    words = {
        "class": f"What is {docstring.name}?",
        "function": f"What does {docstring.name} do?",
        "topic": f"Explain the topic {docstring.name!r} of Python.",
    }
    return {"name": docstring.name, "instruction": words[docstring.kind], "output": docstring.text}


def reference() -> Iterator[Docstring]:
    """Topics of the language reference: the first paragraphs of each, up to the longest text."""
    for topic, text in sorted(topics.items()):
        paragraphs = [part for part in text.split("\n\n") if part.strip(" \n*=-~")]
        kept = ""
        for paragraph in paragraphs:
            if len(kept) + len(paragraph) + 2 > LONGEST:
                break
            kept = f"{kept}\n\n{paragraph}".strip("\n")
        if len(kept) >= SHORTEST:
            yield Docstring(topic, "", "topic", kept)


def standard_library() -> Iterator[Docstring]:
    """Docstrings of public classes and functions. The files are parsed and not imported."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for module in sorted(sys.stdlib_module_names - LEFT_OUT):
        if module.startswith("_"):
            continue
        file, folder = library / f"{module}.py", library / module
        for path in [file] if file.is_file() else sorted(folder.rglob("*.py")):
            parts = [part for part in path.relative_to(library).with_suffix("").parts if part != "__init__"]
            if not any(part.startswith("_") or part in ("test", "tests") for part in parts):
                yield from in_body(ast.parse(path.read_bytes()), module, ".".join(parts))


def in_body(node: ast.Module | ast.ClassDef, module: str, prefix: str) -> Iterator[Docstring]:
    """Docstrings of the classes and functions in a module or a class, except private ones."""
    for child in node.body:
        if not isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) or child.name.startswith("_"):
            continue
        name, is_class = f"{prefix}.{child.name}", isinstance(child, ast.ClassDef)
        text = (ast.get_docstring(child) or "").strip()
        if SHORTEST <= len(text) <= LONGEST:
            yield Docstring(name, module, "class" if is_class else "function", text)
        if isinstance(child, ast.ClassDef):
            yield from in_body(child, module, name)


def unique(docstrings: Iterable[Docstring]) -> list[Docstring]:
    """First docstring of each name and of each text, however its letters and spaces are written."""
    names, texts, kept = set(), set(), []
    for docstring in docstrings:
        words = " ".join(docstring.text.lower().split())
        if docstring.name not in names and words not in texts:
            kept.append(docstring)
        names.add(docstring.name)
        texts.add(words)
    return kept


def of_modules(docstrings: Iterable[Docstring]) -> list[Docstring]:
    """Docstrings of the ten modules that are classes."""
    return [docstring for docstring in docstrings if docstring.module in MODULES]


def split_of(name: str) -> str:
    """Split of a text by the hash of its name."""
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 100
    for split, share in SHARES.items():
        if place < share:
            return split
        place -= share
    raise AssertionError("the shares are 100 per cent")


def write(folder: Path, rows: list[dict[str, str]]) -> None:
    """Write the files of a form."""
    folder.mkdir(parents=True)
    for split in SHARES:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows if split_of(row["name"]) == split]
        (folder / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    counts = Counter(split_of(row["name"]) for row in rows)
    info = {"python": platform.python_version(), "rows": {split: counts[split] for split in SHARES}}
    (folder / "info.json").write_text(json.dumps(info, indent=1) + "\n")
    size = sum(file.stat().st_size for file in folder.glob("*.jsonl"))
    print(f"{folder.name}: {', '.join(f'{split} {counts[split]}' for split in SHARES)}, {size / 1e6:.2f} MB")
