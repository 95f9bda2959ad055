"""One backbone for consecutive runs of a process, which is read once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy

from backbones.inject import Backbone

shared: dict[str, Backbone] | None = None  # backbone that was read last, inside ``shared_backbone``


@contextmanager
def shared_backbone() -> Iterator[None]:
    """Share one backbone between runs: inside this context, consecutive runs with the same backbone read it once."""
    global shared
    shared = {}
    try:
        yield
    finally:
        shared = None


def read_shared(key: str, read: Callable[[], Backbone]) -> Backbone:
    """A backbone; inside ``shared_backbone`` a copy of the one that was read last, if that has the same key.

    Args:
        key: All that the backbone depends on.
        read: Function that reads it.
    """
    if shared is None:
        return read()
    if key not in shared:
        shared.clear()
        shared[key] = read()
    return deepcopy(shared[key])
