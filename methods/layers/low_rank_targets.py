"""Layers and blocks of rows that a low-rank update changes, found by the ends of their names or by their role."""

import difflib
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from backbones.anatomy import ends, weight_layers
from backbones.inject import Backbone
from backbones.projections import attention_rows
from methods.layers.low_rank import Rows

DEFAULT = ("q", "v")


class Target(NamedTuple):
    """Blocks of rows of one weight; ``order`` is that of ``LowRank``, and None if each block is in one piece."""

    rows: Rows
    order: Tensor | None = None

    def largest_rank(self, layer: Any) -> int:
        """Largest rank that an update of each block can have."""
        return min(layer.weight.flatten(1).shape[1], *(last - first for first, last in self.rows))


def find_targets(
    backbone: Backbone, targets: list[str] | None, heads: tuple[str, ...] = (), option: str = "lora_targets"
) -> dict[str, Target]:
    """Find the layers of targets, each with the blocks of rows to update.

    Args:
        backbone: The model.
        targets: Ends of layer names; ``q``, ``k`` and ``v`` are also the rows of a fused layer that compute them. By
            default ``q`` and ``v``, and in a network without them every layer outside stem and classifier.
        heads: Names of the classifier's layers, which train in full.
        option: Name of the option that gives the targets, for messages.

    Raises:
        ValueError: If a target matches no layer, or rows of another target.
    """
    layers, attention = weight_layers(backbone, heads), attention_rows(backbone)
    attention = {name: rows for name, rows in attention.items() if name in layers}
    if not layers:
        raise ValueError(
            f"{option}: {type(backbone).__name__} has no linear layer and no convolution between stem and classifier; "
            "use --method linear_probe or full"
        )
    if targets is None:
        targets = [part for part in DEFAULT if any(part in rows for rows in attention.values())]
        if not targets:
            return {name: Target(((0, len(layer.weight)),)) for name, layer in layers.items()}
    found: dict[str, list[Tensor]] = {}
    for target in dict.fromkeys(targets):
        hits = {n: torch.arange(len(layer.weight), device="cpu") for n, layer in layers.items() if ends(n, target)}
        hits |= {name: rows[target] for name, rows in attention.items() if target in rows}
        if not hits:
            raise ValueError(no_hit(option, target, list(layers)))
        for name, rows in hits.items():
            if any(torch.isin(rows, other).any() for other in found.get(name, ())):
                raise ValueError(f"{option}: {target} covers rows of {name} twice; leave one target out")
            found.setdefault(name, []).append(rows)
    return {name: as_blocks(parts, len(layers[name].weight)) for name, parts in found.items()}


def no_hit(option: str, target: str, names: list[str]) -> str:
    """Message for a target that no layer has, with the nearest names."""
    known = sorted({n.rpartition(".")[2] for n in names} | {".".join(n.split(".")[-2:]) for n in names})
    near = difflib.get_close_matches(target, known, n=5, cutoff=0.4) or known[:5]
    return (
        f"{option}: no linear layer's or convolution's name ends with {target!r}; near: {', '.join(near)}; without "
        f"{option}, q and v are updated, or every layer of a network without attention"
    )


def as_blocks(parts: list[Tensor], outputs: int) -> Target:
    """Blocks of rows from the numbers of their rows, in the order of the first one."""
    parts = sorted(parts, key=lambda rows: int(rows[0]))
    if all(int(rows[-1]) - int(rows[0]) + 1 == len(rows) for rows in parts):
        return Target(tuple((int(rows[0]), int(rows[-1]) + 1) for rows in parts))
    updated = torch.cat(parts)
    every = torch.arange(outputs, device="cpu")
    last = list(accumulate(len(rows) for rows in parts))
    rows = tuple(zip([0, *last], last, strict=False))
    order = torch.cat([updated, every[~torch.isin(every, updated)]])
    return Target(rows, order.to(torch.get_default_device()))
