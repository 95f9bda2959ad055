"""Leaderboard of finished runs beside the papers' printed numbers, as Markdown, CSV, PNG and one HTML page.

Runs of one protocol share a letter. Runs with another backbone, split, selection, normalisation and the like are rows
of their own, never averaged with the first, and the page lists the differences. A missing run is shown as missing.
"""

import argparse
from pathlib import Path

from commands.lightning.short_errors import ShortErrors
from commands.report.leaderboard import Leaderboard
from commands.report.page import draw, html, save, section, table
from commands.report.runs import collect


def main(args: list[str]) -> None:
    """Read every ``result.json`` below the folders and write the tables.

    Args:
        args: Folders, and where the report goes.

    Raises:
        ValueError: If there is no run in the folders.
    """
    parser = ShortErrors("train.py report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="run folders, or folders of them")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the report (RUNS/report)")
    own = parser.parse_args(args)
    runs, unfinished = collect(own.runs)
    if not runs and not unfinished:
        raise ValueError(f"no run in {', '.join(map(str, own.runs))}: expected folders of `fit` with their config.yaml")
    output = own.output or own.runs[0] / "report"
    text, rows, pictures = ["# Report"], [], {}
    boards = dict.fromkeys((run.dataset, run.metric["name"]) for run in runs)
    for dataset, metric in boards:
        board = Leaderboard(dataset, [run for run in runs if (run.dataset, run.metric["name"]) == (dataset, metric)])
        several = len([name for name, _ in boards if name == dataset]) > 1
        picture = f"{dataset}-{metric}.png" if several else f"{dataset}.png"
        if board.complete:
            pictures[picture] = draw(board)
        text += section(board, picture if board.complete else None)
        rows += board.rows()
    if unfinished:
        text += ["## Unfinished", "\n".join(f"- {line}" for line in unfinished)]
    page = "\n\n".join(text)
    save(output / "report.md", page + "\n")
    save(output / "report.html", html(page, pictures))
    save(output / "leaderboard.csv", table(rows))
    save(output / "runs.csv", table([run.row() for run in runs]))
    for name, picture_bytes in pictures.items():
        save(output / name, picture_bytes)
    print(f"{len(runs)} runs, {len(unfinished)} unfinished: {output / 'report.html'} (.md, .csv, .png beside it)")
