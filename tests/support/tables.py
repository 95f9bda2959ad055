"""Small images with CSV files of their targets."""

from pathlib import Path

from tests.support.pictures import picture


def write_tables(root: Path, tables: dict[str, list[str]], header: str) -> None:
    """Write CSV files and an image for each line.

    Args:
        root: New or existing folder.
        tables: Lines of each file without the path, by the name of the file without suffix.
        header: First line without ``path``.
    """
    root.mkdir(parents=True, exist_ok=True)
    for number, (name, lines) in enumerate(tables.items()):
        rows = [f"path,{header}"]
        for index, line in enumerate(lines):
            picture(100 * number + index, 32, 32).save(root / f"{name}{index}.png")
            rows.append(f"{name}{index}.png,{line}")
        (root / f"{name}.csv").write_text("\n".join(rows) + "\n")
