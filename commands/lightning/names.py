"""Names that a user may misspell."""

import difflib
from collections.abc import Iterable


def near(name: str, known: Iterable[str], cutoff: float = 0.4) -> list[str]:
    """At most three known names that resemble a name, the most similar first."""
    return difflib.get_close_matches(name, list(known), n=3, cutoff=cutoff)


def nearest(name: str, known: Iterable[str], kind: str) -> str:
    """Return a name that is known.

    Args:
        name: Name that the user gave.
        known: All valid names.
        kind: What the message calls it.

    Raises:
        ValueError: If the name is unknown, with the most similar names and all valid ones.
    """
    known = list(known)
    if name in known:
        return name
    similar = near(name, known)
    hint = f"nearest: {', '.join(similar)}; " if similar else ""
    raise ValueError(f"unknown {kind} {name!r}; {hint}known: {', '.join(known)}")
