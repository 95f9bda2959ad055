"""List the recipes: published settings of a method on a benchmark, for ``fit --recipe NAME``."""


def recipes() -> None:
    """Print one line for every recipe."""
    from rich.console import Console
    from rich.table import Table

    from commands.lightning.recipes import read_recipe, recipe_files

    table = Table("--recipe", "--method", "data", "tasks", "searched by the source", "where the numbers are from")
    for name, path in recipe_files().items():
        recipe = read_recipe(name)
        grid = ", ".join(key.partition(".")[2] for key in recipe.get("grid", {}))
        source = path.read_text().splitlines()[1].removeprefix("# ")
        table.add_row(name, recipe["method"], recipe["data"], str(len(recipe.get("tasks", {})) or ""), grid, source)
    Console(width=200).print(table)
