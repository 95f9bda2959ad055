"""Columns of the list of methods, and the table of the README."""

import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from methods import PEFTMethod

BEGIN, END = "<!-- train.py methods --markdown -->", "<!-- end of train.py methods --markdown -->"
PAPER = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
REFERENCE = re.compile(rf" \({PAPER.pattern}\)|, {PAPER.pattern}")  # of a docstring, where the table has a column


def markdown_table(known: "dict[str, type[PEFTMethod]]") -> str:
    """Table of the README between its markers.

    Args:
        known: Methods by name.
    """
    from methods.core.selective import Selective

    lines = ["| `--method` | method | tasks | merges | selects from data | paper |", "|---|---|---|---|---|---|"]
    for name, method in known.items():
        text = REFERENCE.sub("", summary(method)).replace("``", "`")
        selects = "yes" if issubclass(method, Selective) else "no"
        lines.append(f"| `{name}` | {text} | {tasks(method)} | {merges(method)} | {selects} | {paper(method)} |")
    return "\n".join([BEGIN, *lines, END])


def summary(method: "type[PEFTMethod]") -> str:
    """First line of the docstring of a method, without its full stop."""
    return (method.__doc__ or "").strip().partition("\n")[0].rstrip(".")


def tasks(method: "type[PEFTMethod]") -> str:
    """Tasks that a method serves: all, all but some, or the few."""
    from lightning_modules import TASKS

    refused = [name for name, task in TASKS.items() if method.refusal(task)]
    served = [name for name in TASKS if name not in refused]
    if not refused:
        return "all"
    return f"all but {', '.join(refused)}" if len(refused) < len(served) else ", ".join(served)


def merges(method: "type[PEFTMethod]") -> str:
    """Whether a method merges into plain weights: yes, no with the reason, or as the method it is stacked on."""
    if not method.standalone:
        return "as the other"
    return "yes" if method.mergeable else f"no: {method.unmergeable}"


def paper(method: "type[PEFTMethod]") -> str:
    """Link to the paper that the docstring of the class or of its file names; empty without one."""
    found = PAPER.search(f"{method.__doc__}\n{sys.modules[method.__module__].__doc__}")
    return f"[{found.group(1)}](https://arxiv.org/abs/{found.group(1)})" if found else ""
