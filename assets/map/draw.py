"""Draws map.svg, the picture of docs/map.md: ``python assets/map/draw.py``.

Each column is a folder. Time runs from top to bottom, one box a step.
"""

from html import escape
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

COLUMNS = ("datamodules", "lightning_modules", "backbones", "methods", "callbacks", "checkpoints", "commands")
WIDTH, HEIGHT = 168, 40  # of a box
STEP_X, STEP_Y = 186, 58  # from one column or step to the next
MARGIN, HEAD, TITLE = 14, 44, 34


class Step(NamedTuple):
    """One step of a way: its folder, and two lines of text."""

    column: str
    name: str
    does: str


WAYS: dict[str, tuple[str, list[Step]]] = {
    "A training batch": (
        "#1f5fa8",
        [
            Step("datamodules", "item, collate", "samples become a Batch"),
            Step("lightning_modules", "Task.training_step", "augment, then forward"),
            Step("methods", "features", "a method may change them"),
            Step("backbones", "adapted backbone", "frozen weights, hooks"),
            Step("lightning_modules", "predict_from, losses", "head and terms of the loss"),
            Step("callbacks", "Cost, Result", "result.json, curves.png"),
        ],
    ),
    "A score": (
        "#b3570c",
        [
            Step("callbacks", "ScoreBeforeFit", "on the plain backbone"),
            Step("datamodules", "score_batches", "the same on every rank"),
            Step("methods", "score_loss", "a scalar to differentiate"),
            Step("callbacks", "Scorer", "sums scores in fp32"),
            Step("methods", "select", "scores become a selection"),
            Step("callbacks", "report", "scores.png, scores.csv"),
            Step("methods", "configure_model", "adapts what was selected"),
        ],
    ),
    "An adapter file": (
        "#2c7a3f",
        [
            Step("methods", "on_save_checkpoint", "keeps the delta alone"),
            Step("checkpoints", "AtomicCheckpointIO", "best.ckpt, written whole"),
            Step("callbacks", "DeltaExport", "at the end of the fit"),
            Step("checkpoints", "write_adapter", "safetensors and JSON"),
            Step("commands", "test, predict, merge", "--ckpt_path RUN/adapter"),
            Step("checkpoints", "read_checkpoint", "format 1 is translated"),
            Step("methods", "from_delta, merge", "checks, loads, merges"),
            Step("backbones", "a plain model", "timm alone can load it"),
        ],
    ),
}


def left(column: str) -> int:
    return MARGIN + COLUMNS.index(column) * STEP_X


def text(x: float, y: float, content: str, **style: str | int) -> str:
    attributes = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in style.items())
    return f'<text x="{x:g}" y="{y:g}"{attributes}>{escape(content)}</text>'


def box(step: Step, number: int, y: int, colour: str) -> list[str]:
    x = left(step.column)
    return [
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="5" fill="#fff" stroke="{colour}"/>',
        text(x + 9, y + 17, f"{number} {step.name}", font_size=12, font_weight=600, fill=colour),
        text(x + 9, y + 32, step.does, font_size=11, fill="#333"),
    ]


def arrow(here: Step, there: Step, y: int, colour: str) -> str:
    """From the side or the bottom of a box to the top of the next one, a step further down."""
    start, end = left(here.column), left(there.column)
    middle = y + HEIGHT // 2
    if start == end:
        path = f"M{start + WIDTH / 2:g} {y + HEIGHT} V{y + STEP_Y - 5}"
    else:
        side = start + WIDTH if end > start else start
        path = f"M{side} {middle} H{end + WIDTH / 2:g} V{y + STEP_Y - 5}"
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5" marker-end="url(#{colour[1:]})"/>'


def draw() -> str:
    """The picture as SVG."""
    width = 2 * MARGIN + (len(COLUMNS) - 1) * STEP_X + WIDTH
    parts, y = [], HEAD
    for title, (colour, steps) in WAYS.items():
        parts.append(text(MARGIN, y + 20, title, font_size=15, font_weight=700, fill=colour))
        y += TITLE
        parts += [arrow(*pair, y + i * STEP_Y, colour) for i, pair in enumerate(pairwise(steps))]
        for number, step in enumerate(steps, start=1):
            parts += box(step, number, y, colour)
            y += STEP_Y
    marker = (
        '<marker id="{0}" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#{0}"/></marker>'
    )
    columns = []
    for index, column in enumerate(COLUMNS):
        fill = "#f4f4f4" if index % 2 == 0 else "#fafafa"
        columns.append(f'<rect x="{left(column) - 9}" y="0" width="{STEP_X}" height="{y}" fill="{fill}"/>')
        style: dict[str, str | int] = {"font_size": 13, "font_weight": 700, "fill": "#555", "text_anchor": "middle"}
        columns.append(text(left(column) + WIDTH / 2, 26, f"{column}/", **style))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" font-family="Arial, sans-serif">',
        f"<defs>{''.join(marker.format(colour[1:]) for colour, _ in WAYS.values())}</defs>",
        f'<rect width="{width}" height="{y}" fill="#fff"/>',
        *columns,
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "map.svg").write_text(draw())
