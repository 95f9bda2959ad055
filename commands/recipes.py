"""List the recipes, published settings of a method on a benchmark, or show where each value of one is from."""

import sys
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from commands.lightning.arguments import pop_flag
from commands.lightning.recipes import read_recipe, recipe_files
from commands.lightning.short_errors import ShortErrors


def main(args: list[str]) -> None:
    """Print one line for every recipe, or for every value of one.

    Args:
        args: Options of this command, and those of the fit whose values are shown.
    """
    parser = ShortErrors(
        "train.py recipes",
        usage="train.py recipes [--show NAME [options of fit]]",
        description=f"{__doc__} Example: train.py recipes --show vtab/gps --data.task kitti",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--show",
        metavar="NAME",
        help="recipe, or file of yours, whose values are printed with the place that each is from: paper, file and "
        "line of the original script, command line, or default; further options are those of fit",
    )
    own, options = parser.parse_known_args(args)
    if own.show is not None:
        show(own.show, options)
    elif options:
        parser.error(f"unknown arguments {' '.join(options)}; options of fit need --show NAME")
    else:
        print_recipes()


def print_recipes() -> None:
    """Print one line for every recipe."""
    table = Table("--recipe", "--method", "data", "tasks", "searched by the source", "where the numbers are from")
    for name, path in recipe_files().items():
        recipe = read_recipe(name)
        grid = ", ".join(key.partition(".")[2] for key in recipe.get("grid", {}))
        source = path.read_text().splitlines()[1].removeprefix("# ")
        table.add_row(name, recipe["method"], recipe["data"], str(len(recipe.get("tasks", {})) or ""), grid, source)
    Console(width=200).print(table)


def show(name: str, options: list[str]) -> None:
    """Print every value of a fit with a recipe, and where it is from.

    Args:
        name: Name or path of the recipe.
        options: Further options of ``fit``, such as ``--data.task``.
    """
    from commands.lightning.cli import GraftCLI
    from commands.lightning.origins import Value

    class Shown(GraftCLI):
        """Prints the values in the place of a run."""

        def before_instantiate_classes(self) -> None:
            print_values(self.values())
            sys.exit(0)

    def print_values(values: Iterable[Value]) -> None:
        table = Table(title=f"fit --recipe {name}", title_justify="left")
        for column in ("option", "value", "where from", "recipe"):
            table.add_column(column, overflow="fold")
        for value in values:
            if placeholder is None or value.option != "data.root":
                table.add_row(value.option, value.text, value.source, value.place)
        Console(width=160).print(table)

    given = pop_flag(options, "--data.root")[0] or read_recipe(name).get("all", {}).get("data.root")
    # a fit needs a root and its values do not: the parser gets a word in its place, which the table leaves out
    placeholder = None if given else "DIR"
    root = [] if given else [f"--data.root={placeholder}"]
    Shown.run(["fit", "--recipe", name, *root, *options])
