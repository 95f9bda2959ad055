"""Semantic FPN."""

import torch

from lightning_modules.heads.semantic_fpn import SemanticFPN

CHANNELS = [64, 128, 256, 384]


def test_counts() -> None:
    """The feature pyramid has the count of the spec; the levels have 1, 1, 2 and 3 convolutions of 128 channels."""
    with torch.device("meta"):
        head = SemanticFPN(CHANNELS, 150)
    assert sum(p.numel() for p in head.pyramid.parameters()) == 2_574_336
    convs = 4 * 9 * 256 * 128 + 3 * 9 * 128 * 128 + 7 * 2 * 128
    assert sum(p.numel() for p in head.branches.parameters()) == convs
    assert sum(p.numel() for p in head.classifier.parameters()) == 150 * 129


def test_sizes() -> None:
    """Also for maps whose sides were rounded up."""
    head = SemanticFPN([4, 5, 6, 7], 3, width=8)
    for sides in ([16, 8, 4, 2], [12, 6, 3, 2]):
        maps = [torch.randn(2, c, side, side) for c, side in zip([4, 5, 6, 7], sides, strict=True)]
        logits = head(maps)
        assert logits.shape == (2, 3, sides[0], sides[0])
        logits.sum().backward()
    assert all(p.grad is not None for p in head.parameters())
