"""Table of all methods on small networks of all families of timm, the page docs/backbones.md."""

from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import NamedTuple

import torch
from tqdm import tqdm

from commands.methods.cell import Outcome, outcome
from commands.methods.families import FAMILIES, network
from methods import METHODS

MARKS = {"merges": "**m**", "trains": "t", "refused": "-"}
# a method that changes how another one trains is tried on this one
STACK = {name: name if method.standalone else f"lora+{name}" for name, method in METHODS.items()}
INTRODUCTION = """# Backbones

Every method on one small network of every family of timm, with random weights: one training step and one merge.
`python train.py methods --matrix` prints this page, and `tests/methods/test_matrix.py` holds it true.

| mark | meaning |
|---|---|
| **m** | trains, and merges: the merged weights load into the plain model of timm and give equal outputs |
| t | trains, but does not merge into the plain model; the reasons are below the table |
| - | refused before any data are read; the reasons are below the table |

A family is a module of timm. A second member of a module stands as `module/variant`. A method that only works stacked
on another one is stacked on `lora`. A larger member of a family can have layers that the small one lacks;
`python train.py methods --backbone NAME` lists the methods on one backbone.
"""


class Cell(NamedTuple):
    """A method on a family.

    Args:
        family: Name of the family.
        network: Name of the class of its network.
        method: Name of the method.
        outcome: What came out.
    """

    family: str
    network: str
    method: str
    outcome: Outcome


def outcomes() -> list[Cell]:
    """Outcomes of all methods on all families, with a progress bar."""
    torch.set_num_threads(1)  # because the threads would only wait for each other
    return list(tqdm(run(FAMILIES), total=len(FAMILIES) * len(METHODS), desc="methods x families", leave=False))


def run(families: Iterable[str]) -> Iterator[Cell]:
    """Outcomes of all methods on some families, family by family."""
    for family in families:
        plain = network(family)
        for method, stack in STACK.items():
            try:
                found = outcome(stack, FAMILIES[family], plain)
            except Exception as error:
                error.add_note(f"cell of {method} on {family}")
                raise
            yield Cell(family, type(plain).__name__, method, found)


def page(cells: list[Cell]) -> str:
    """The page with the table, and with the reasons of each method.

    Args:
        cells: Outcomes of each method on each family.
    """
    families = list(dict.fromkeys(cell.family for cell in cells))
    methods = list(dict.fromkeys(cell.method for cell in cells))
    states = {(cell.family, cell.method): cell.outcome.state for cell in cells}
    lines = [INTRODUCTION, "| family | " + " | ".join(methods) + " |", "|---|" + ":-:|" * len(methods)]
    for family in families:
        marks = [MARKS[states[family, method]] for method in methods]
        lines.append(f"| `{family}` | " + " | ".join(marks) + " |")
    lines += ["", "## Reasons"]
    for method in methods:
        lines += ["", f"### {method}", "", *reasons([cell for cell in cells if cell.method == method])]
    return "\n".join(lines) + "\n"


def read_page(text: str) -> dict[tuple[str, str], str]:
    """Marks of the page by family and method.

    Args:
        text: The page, as ``page`` writes it.
    """
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| family |"))
    methods = [word.strip() for word in lines[start].split("|")[2:-1]]
    marks: dict[tuple[str, str], str] = {}
    for line in takewhile(lambda line: line.startswith("|"), lines[start + 2 :]):
        family, *row = [word.strip() for word in line.split("|")[1:-1]]
        marks |= {(family.strip("`"), method): mark for method, mark in zip(methods, row, strict=True)}
    return marks


def reasons(cells: list[Cell]) -> list[str]:
    """Lines of the reasons why a method does not merge or is refused, each with its families."""
    families: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        if cell.outcome.message:
            message = cell.outcome.message.replace(cell.network, "the network")
            families.setdefault((cell.outcome.state, message), []).append(f"`{cell.family}`")
    lines = [f"- {state}: {message}. ({', '.join(names)})" for (state, message), names in families.items()]
    return lines or ["It merges on every family."]
