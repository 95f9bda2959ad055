"""List the methods: paper, parameters on a backbone, whether they merge, and on which families of timm they work."""

import gc

from commands.lightning.short_errors import ShortErrors
from commands.methods.listing import markdown_table, merges, summary


def main(args: list[str]) -> None:
    """Print the methods.

    Args:
        args: Options of this command.
    """
    parser = ShortErrors("train.py methods", description=__doc__, allow_abbrev=False)
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
    parser.add_argument(
        "--matrix",
        action="store_true",
        help="train and merge every method on a small network of each timm family, which takes some minutes, and print "
        "the page docs/backbones.md",
    )
    own = parser.parse_args(args)
    if own.matrix:
        from commands.methods.matrix import outcomes, page

        print(page(outcomes()), end="")
    elif own.markdown:
        from methods import METHODS

        print(markdown_table(METHODS))
    else:
        gc.disable()  # because there is hardly any garbage, and looking for it takes a second
        try:
            print_counts(own.backbone, own.num_classes)
        finally:
            gc.enable()


def print_counts(backbone: str, num_classes: int) -> None:
    """Print one line for every method, with the number of parameters that it trains.

    Args:
        backbone: Full timm tag.
        num_classes: Outputs of the classifier.
    """
    from rich.console import Console
    from rich.table import Table

    from commands.methods.costs import costs
    from methods import METHODS

    table = Table(title=f"Methods on {backbone}, {num_classes} classes", title_justify="left")
    for name, style in {"--method": "left", "what": "left", "trained, no head": "right", "with head": "right"}.items():
        table.add_column(name, justify=style)  # type: ignore[arg-type]
    table.add_column("merges")
    for name, cost in costs(backbone, num_classes):
        shown = [cost.reason, ""] if cost.reason else [f"{cost.method:,}", f"{cost.method + cost.head:,}"]
        table.add_row(name, summary(METHODS[name]), *shown, merges(METHODS[name]).partition(":")[0])
    Console(width=150).print(table)
