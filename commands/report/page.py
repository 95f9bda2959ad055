"""The page: each table in Markdown with a picture and notes, all of it as HTML and CSV."""

import base64
import csv
from io import BytesIO, StringIO
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from commands.report.leaderboard import Leaderboard
from commands.report.printed import sources
from commands.report.runs import PROTOCOL, Run, unit_of

LOGARITHMIC = ("cost/trainable_params", "cost/storage_bytes")  # and the speed
MISSING = "-"
STYLE = """<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 100rem; padding: 0 1rem }
table { border-collapse: collapse; display: block; overflow-x: auto; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
tr:hover td { background: #f3f3f3 }
img { max-width: 100% }
</style>"""


def section(board: Leaderboard, picture: str | None) -> list[str]:
    """Paragraphs: summary, tasks, picture, protocols."""
    names, several = board.mean_names, len(board.columns) > 1
    score = ["PPT"] if board.has_ppt else []
    columns = [*names.values(), *score] if several else board.columns
    head = ["method", "protocol", "seeds", *columns, *board.costs.values()]
    body, tasks = [], []
    for letter, label in board.order:
        line = board.lines[letter, label]
        means, cells, cost = board.means(line), board.cells(line), board.mean_costs(line)
        if several:
            shown = [over_seeds(board, means.get(name, [])) for name in names]
            shown += [two_decimals(board.ppt(line)) for _ in score]
        else:
            shown = [cell(board, line, *board.columns)]
        count = str(len({run.seed for run in line}))
        body.append([label, letter, count, *shown, *(number(cost.get(name)) for name in board.costs)])
        tasks.append([label, letter, *(cell(board, line, column) for column in cells)])
    for row in board.printed:
        average, own = board.printed_means(row), row["values"]
        values = [average.get(name) for name in [*names, *score]] if several else [own[c] for c in board.columns]
        label = f"{row['method']}, printed"
        body.append([label, f"[{row['source']}]", "", *map(two_decimals, values), *[""] * len(board.costs)])
        if own:
            tasks.append([label, f"[{row['source']}]", *(f"{own[c]:.1f}" for c in board.columns)])
    text = [f"## {board.dataset}", grid_of(head, body)]
    if several:
        text += [f"{board.metric['label']} of each task:", grid_of(["method", "protocol", *board.columns], tasks)]
    if picture is not None:
        text.append(f"![{board.metric['label']} against costs]({picture})")
    return [*text, notes(board)]


def cell(board: Leaderboard, line: list[Run], column: str) -> str:
    runs = [run for run in line if run.column == column]
    mark = " †" if any(run.images != board.usual[column] for run in runs) else ""
    return over_seeds(board, [run.value for run in runs]) + mark


def two_decimals(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def over_seeds(board: Leaderboard, values: list[float]) -> str:
    """Mean, deviation, and of how many seeds if some are missing."""
    if not values:
        return MISSING
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    missing = f" ({len(values)} of {board.seeds} seeds)" if len(values) < board.seeds else ""
    return f"{mean(values):.2f}{spread}{missing}"


def notes(board: Leaderboard) -> str:
    """List of the protocols by letter, of the sources, and of the signs."""
    first, lines = next(iter(board.letters)), []
    for protocol, name in board.letters.items():
        values = [(k, v or MISSING, a or MISSING) for k, v, a in zip(PROTOCOL, protocol, first, strict=True)]
        said = [f"{key} {value}" for key, value, _ in values if value not in (MISSING, "None")]
        if protocol != first:
            said = [f"{key} {value} (A: {usual})" for key, value, usual in values if value != usual]
        lines.append(f"- protocol {name}: {', '.join(said)}")
    if len(board.letters) > 1:
        lines.append("- **Rows of different protocols are not comparable.**")
    for name in dict.fromkeys(row["source"] for row in board.printed):
        lines.append(f"- [{name}] {sources()[name]}")
    if any(run.images != board.usual[run.column] for run in board.runs):
        lines.append("- † trained on another number of images than most runs of the column")
    if board.has_ppt:
        lines.append(
            "- PPT is V-PETL's trade-off of performance and parameters (Xin et al., NeurIPS 2024): "
            "M exp(-log10(P / 10^7 + 1)), M the mean of the tasks as a share, P the trained parameters, no head."
        )
    lines.append("- ± is the standard deviation over seeds; costs are means over tasks and seeds.")
    lines.append("- On CPUs memory is the most that a process has had; runs of one grid worker share a process.")
    return "\n".join(lines)


def draw(board: Leaderboard) -> bytes:
    """Draw the mean metric over the tasks against each cost, for rows without a missing task."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    grid = figure.subplots(2, -(-len(board.costs) // 2), sharey=True)
    lines = list(enumerate(board.complete, 1))  # points have numbers, because names would cover each other
    colours = colormaps["turbo"].resampled(len(lines) + 2)
    for axis, (name, title) in zip(grid.flat, board.costs.items(), strict=True):
        for number, key in lines:
            cost, values = board.mean_costs(board.lines[key]).get(name), board.cells(board.lines[key]).values()
            if cost:
                height = mean(mean(value) for value in values)
                axis.scatter(cost, height, s=24, color=colours(number))
                axis.annotate(str(number), (cost, height), textcoords="offset points", xytext=(4, 3), fontsize=8)
        axis.set(xlabel=title, xscale="log" if name in LOGARITHMIC or unit_of(name) else "linear")
        axis.grid(alpha=0.3)
    for number, (letter, label) in lines:
        text = label if len(board.letters) == 1 else f"{label} ({letter})"
        grid[0, 0].scatter([], [], s=24, color=colours(number), label=f"{number} {text}")
    figure.legend(loc="outside right upper", fontsize=8)
    figure.supylabel(f"test {board.metric['label']}, {board.mean_names['mean of tasks']}")
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()


def number(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def grid_of(head: list[str], body: list[list[str]]) -> str:
    """A Markdown table."""
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def table(rows: list[dict[str, Any]]) -> str:
    """CSV with the union of all columns."""
    stream = StringIO()
    writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def html(page: str, pictures: dict[str, bytes]) -> str:
    """The page with its pictures inside."""
    from markdown_it import MarkdownIt

    for name, content in pictures.items():
        page = page.replace(f"]({name})", f"](data:image/png;base64,{base64.b64encode(content).decode()})")
    body = MarkdownIt("js-default").render(page)
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Report</title>\n{STYLE}\n{body}</html>\n'


def save(path: Path, content: str | bytes) -> None:
    from checkpoints.atomic import write_atomically

    data = content.encode() if isinstance(content, str) else content
    write_atomically(path, lambda temporary: temporary.write_bytes(data))
