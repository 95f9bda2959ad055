"""YAML without repeated keys and without aliases that grow beyond all memory."""

from typing import Any

import yaml
from jsonargparse import get_loader, set_loader
from yaml import MappingNode, Node, SequenceNode
from yaml.constructor import ConstructorError

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MOST_VALUES = 100_000  # a config has hundreds; ten levels of ten aliases each stand for 10^10 values
load_plain = get_loader("yaml")


def check(content: str) -> None:
    """Refuse what YAML allows and nobody means.

    Args:
        content: A document.

    Raises:
        YAMLError: If it is no YAML, a mapping has a key twice, or its aliases stand for more than ``MOST_VALUES``.
    """
    root = yaml.compose(content, Loader=Loader)
    if root is not None:
        count(root, {})


def count(node: Node, counts: dict[int, int | None]) -> int:
    """Number of values that a node stands for, those behind its aliases included.

    Args:
        node: The node.
        counts: Numbers of nodes by their identity, because an alias is the node itself; None while one is counted.

    Raises:
        ConstructorError: If a mapping has a key twice, or aliases stand for too many values, or for themselves.
    """
    if id(node) in counts:
        known = counts[id(node)]
        if known is None:
            raise refusal(node, "an alias that stands for itself", "write the values out")
        return known
    counts[id(node)] = None
    inner: list[Node] = []
    if isinstance(node, SequenceNode):
        inner = node.value
    elif isinstance(node, MappingNode):
        inner = [part for pair in node.value for part in pair]
        keys = set()
        for key, _ in node.value:
            if (key.tag, str(key.value)) in keys:
                raise refusal(key, f"{key.value!r} stands here a second time", "keep one of the two")
            keys.add((key.tag, str(key.value)))
    total = 1 + sum(count(part, counts) for part in inner)
    if total > MOST_VALUES:
        raise refusal(node, f"its aliases stand for more than {MOST_VALUES:,} values", "write fewer of them")
    counts[id(node)] = total
    return total


def refusal(node: Node, found: str, remedy: str) -> ConstructorError:
    """Error with the place of a node."""
    return ConstructorError(None, None, f"{found}; {remedy}", node.start_mark)


def load(content: str) -> Any:
    """Value of a document that passes ``check``, as jsonargparse reads it.

    Raises:
        YAMLError: If it is refused, or holds a number that is too large.
    """
    check(content)
    try:
        return load_plain(content)
    except ValueError as error:  # such as a number of thousands of digits
        raise yaml.YAMLError(str(error)) from error


def use() -> None:
    """Let all parsers of jsonargparse read YAML by ``load``."""
    set_loader("yaml", load, (yaml.YAMLError,))
