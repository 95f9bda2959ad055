"""SETR-PUP."""

import torch

from lightning_modules.heads.setr import SETRPUP


def test_sizes() -> None:
    """The head enlarges a map 16 times, an auxiliary head 4 times."""
    x = torch.randn(2, 6, 2, 3)
    assert SETRPUP(6, 5, width=4)(x).shape == (2, 5, 32, 48)
    assert SETRPUP(6, 5, width=4, steps=1, factor=4)(x).shape == (2, 5, 8, 12)


def test_counts() -> None:
    """Convolutions without bias, two numbers a channel for each BatchNorm, and the classifier."""
    with torch.device("meta"):
        head = SETRPUP(1024, 150)
    expected = 9 * 256 * (1024 + 3 * 256) + 4 * 2 * 256 + 150 * 257
    assert sum(p.numel() for p in head.parameters()) == expected
