"""Lists in options."""

import math
from typing import Any


def listed(name: str, text: str) -> list[str]:
    """Values separated by commas, each once."""
    values = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not values:
        raise ValueError(f"{name} is empty: expected values separated by commas")
    return values


def numbers(name: str, text: str, kind: type[int] | type[float], least: float = 1e-30) -> list[Any]:
    """Numbers separated by commas.

    Raises:
        ValueError: If one of them is no number, or below ``least``.
    """
    try:
        values = [kind(part) for part in listed(name, text)]
    except ValueError as error:
        raise ValueError(f"{name}={text!r}: {error}; expected numbers separated by commas") from error
    if not all(math.isfinite(value) and value >= least for value in values):
        raise ValueError(f"{name}={text!r}: expected {'positive numbers' if least else 'numbers of at least 0'}")
    return list(dict.fromkeys(values))
