"""List the methods: paper, parameters on a backbone, and whether they merge."""

import argparse
import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from methods import PEFTMethod

BEGIN, END = "<!-- train.py methods --markdown -->", "<!-- end of train.py methods --markdown -->"
PAPER = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
REFERENCE = re.compile(rf" \({PAPER.pattern}\)|, {PAPER.pattern}")  # of a docstring, where the table has a column


def main(args: list[str]) -> None:
    """Print the methods.

    Args:
        args: Options of this command.
    """
    parser = argparse.ArgumentParser("train.py methods", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--backbone",
        default="vit_base_patch16_224.augreg_in21k",
        help="full timm tag of the backbone that parameters are counted on; its weights are not loaded (%(default)s)",
    )
    parser.add_argument(
        "--num_classes",
        type=int,
        default=100,
        help="outputs of the classifier, for the count that includes it (%(default)s)",
    )
    parser.add_argument(
        "--markdown", action="store_true", help="print the table of the README instead, which counts no parameters"
    )
    own = parser.parse_args(args)
    if own.markdown:
        from methods import METHODS

        print(markdown_table(METHODS))
    else:
        print_counts(own.backbone, own.num_classes)


def print_counts(backbone: str, num_classes: int) -> None:
    """Print one line for every method, with the number of parameters that it trains.

    Args:
        backbone: Full timm tag.
        num_classes: Outputs of the classifier.
    """
    from rich.console import Console
    from rich.table import Table

    from backbones.timm_models import check_name
    from lightning_modules.classification import Classification
    from methods import METHODS, compose

    check_name(backbone, pretrained=False)
    table = Table(title=f"Methods on {backbone}, {num_classes} classes", title_justify="left")
    for name, style in {"--method": "left", "what": "left", "trained, no head": "right", "with head": "right"}.items():
        table.add_column(name, justify=style)  # type: ignore[arg-type]
    table.add_column("merges")
    for name, method in METHODS.items():
        try:
            model = compose(method, task=Classification)(backbone=backbone, pretrained=False, num_classes=num_classes)
            model.configure_model()
            counts = model.parameter_counts()
            shown = [f"{counts['method']:,}", f"{sum(counts.values()):,}"]
            shown = shown if model.adapted else ["chosen from data", ""]
        except ValueError as error:
            shown = [str(error) if method.standalone else "stacks on another", ""]
        table.add_row(name, summary(method), *shown, merges(method).partition(":")[0])
    Console(width=150).print(table)


def markdown_table(known: "dict[str, type[PEFTMethod]]") -> str:
    """Table of the README between its markers.

    Args:
        known: Methods by name.
    """
    from methods.core.selective import Selective

    lines = ["| `--method` | method | merges | selects from data | paper |", "|---|---|---|---|---|"]
    for name, method in known.items():
        text = REFERENCE.sub("", summary(method)).replace("``", "`")
        selects = "yes" if issubclass(method, Selective) else "no"
        lines.append(f"| `{name}` | {text} | {merges(method)} | {selects} | {paper(method)} |")
    return "\n".join([BEGIN, *lines, END])


def summary(method: "type[PEFTMethod]") -> str:
    """First line of the docstring of a method, without its full stop."""
    return (method.__doc__ or "").strip().partition("\n")[0].rstrip(".")


def merges(method: "type[PEFTMethod]") -> str:
    """Whether a method merges into plain weights: yes, no with the reason, or as the method it is stacked on."""
    if not method.standalone:
        return "as the other"
    return "yes" if method.mergeable else f"no: {method.unmergeable}"


def paper(method: "type[PEFTMethod]") -> str:
    """Link to the paper that the docstring of the class or of its file names; empty without one."""
    found = PAPER.search(f"{method.__doc__}\n{sys.modules[method.__module__].__doc__}")
    return f"[{found.group(1)}](https://arxiv.org/abs/{found.group(1)})" if found else ""
