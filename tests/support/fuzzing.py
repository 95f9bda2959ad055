"""Strategies of hypothesis for damaged files: one change of a nested value, or of bytes."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

MODULE = "graft_hostile_module"  # a name that files give to code of their own


def nest(depth: int) -> list[Any]:
    """Lists in lists."""
    nested: list[Any] = []
    for _ in range(depth):
        nested = [nested]
    return nested


VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 7, 2**31, -(2**63), 10**30, 0.5, 1e308, float("nan"), float("inf")),
    *("", "x", "x" * 100_000, "\0", "\udcff", "../../../etc/passwd", "/dev/zero", "/dev/stdin", "auto", "true"),
    *(f"{MODULE}.Payload", "methods.LoRAClassification", "methods.FullClassification", "os.system"),
    *([], {}, [0], nest(400), {"class_path": f"{MODULE}.Payload", "init_args": {}}, [f"{MODULE}.Payload"]),
]


def keys(value: Any) -> list[Any]:
    """Names or numbers of the parts of a value."""
    if isinstance(value, dict):
        return sorted(value, key=str)
    return list(range(len(value))) if isinstance(value, list) else []


def enlarged(value: Any) -> Any:
    """A value of the same type that is far larger."""
    if isinstance(value, Tensor):
        return torch.zeros((), dtype=value.dtype).expand(10**6, 10**6)  # one stored number, for a terabyte
    if isinstance(value, dict):
        return value | {f"x{number}": number for number in range(2000)}
    if isinstance(value, list):
        return (value or [0]) * 10_000
    if isinstance(value, str):
        return (value or "x") * 10_000
    if isinstance(value, float):
        return (value or 1.0) * 1e30
    return (int(value or 1)) * 10**9


@dataclass(frozen=True)
class Change:
    """One part of a nested value dropped, replaced by a value of another kind, or enlarged; at any depth.

    Args:
        picks: Which part of each level contains the place of the change.
        what: ``drop``, ``replace`` or ``enlarge``.
        number: Index in ``VALUES`` of the value that replaces the part.
    """

    picks: tuple[int, ...]
    what: str
    number: int

    def path(self, whole: Any) -> list[Any]:
        """Names and numbers that lead to the place of the change."""
        path: list[Any] = []
        for pick in self.picks:
            known = keys(whole)
            if not known:
                break
            path.append(known[pick % len(known)])
            whole = whole[path[-1]]
        return path

    def of(self, whole: Any) -> Any:
        """A changed copy."""
        changed = copy.deepcopy(whole)
        *above, last = self.path(whole)
        parent = changed
        for key in above:
            parent = parent[key]
        if self.what == "drop":
            del parent[last]
        else:
            parent[last] = VALUES[self.number] if self.what == "replace" else enlarged(parent[last])
        return changed


@dataclass(frozen=True)
class Damage:
    """Bytes that are cut, or in which some bits of one place are flipped.

    Args:
        share: Place, as a share of all bytes.
        at_begin: Whether it is a share of the first 400 bytes, because headers are there.
        mask: Bits that are flipped; 0 to cut the bytes at the place.
    """

    share: float
    at_begin: bool
    mask: int

    def of(self, data: bytes) -> bytes:
        place = int(self.share * ((400 if self.at_begin else len(data)) - 1))
        if not self.mask:
            return data[:place]
        return data[:place] + bytes([data[place] ^ self.mask]) + data[place + 1 :]


PICKS = st.lists(st.integers(0, 9999), min_size=1, max_size=7).map(tuple)
CHANGES = st.builds(Change, PICKS, st.sampled_from(["drop", "replace", "enlarge"]), st.integers(0, len(VALUES) - 1))
DAMAGES = st.builds(Damage, st.floats(0, 1), st.booleans(), st.just(0) | st.integers(1, 255))
