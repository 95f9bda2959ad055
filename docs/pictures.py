"""Pictures of the pages: where the trained parameters of a method lie."""

import io
import re
from collections import defaultdict
from collections.abc import Sequence

from matplotlib.figure import Figure

BLOCK = re.compile(r"(?:backbone\.)?blocks\.(\d+)\.(.*)")  # a side network can have blocks of its own
PLACES = {"attention": "attn", "MLP": "mlp", "norms": "norm", "others": ""}  # place: what its names begin with
COLOURS = {"attention": "#00796b", "MLP": "#f9a825", "norms": "#5c6bc0", "others": "#8d6e63"}


def trained_by_block(tensors: Sequence[tuple[str, int]]) -> dict[str, dict[str, int]]:
    """Trained parameters by place, then by number of the block; "outside" for those in no block.

    Args:
        tensors: Name and size of each trained tensor, without the head.
    """
    found: dict[str, dict[str, int]] = {place: defaultdict(int) for place in PLACES}
    for name, size in tensors:
        match = BLOCK.match(name)
        block, rest = match.groups() if match is not None else ("outside", "")
        place = next(place for place, beginning in PLACES.items() if rest.startswith(beginning))
        found[place][block] += size
    return {place: dict(blocks) for place, blocks in found.items() if blocks}


def trained_picture(tensors: Sequence[tuple[str, int]]) -> str:
    """Bars of the trained parameters of each block, as SVG.

    Args:
        tensors: Name and size of each trained tensor, without the head.
    """
    found = trained_by_block(tensors)
    names = {block for blocks in found.values() for block in blocks}
    blocks = sorted(names - {"outside"}, key=int) + sorted(names & {"outside"})
    figure = Figure(figsize=(7, 2.2), layout="constrained")
    axes = figure.subplots()
    below = [0] * len(blocks)
    for place, sizes in found.items():
        heights = [sizes.get(block, 0) for block in blocks]
        axes.bar(blocks, heights, bottom=below, label=place, color=COLOURS[place])
        below = [low + height for low, height in zip(below, heights, strict=True)]
    axes.margins(y=0.08)
    axes.tick_params(labelsize=8)
    axes.set_xlabel("block")
    axes.set_ylabel("trained parameters")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
