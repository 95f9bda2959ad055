"""Necks of detectors."""

import torch

from lightning_modules.heads.necks import PyramidNeck, SimpleFeaturePyramid


def test_pyramid_of_stages() -> None:
    """The fifth map is every second pixel of the fourth one."""
    maps = [torch.randn(2, width, 16 // 2**level, 24 // 2**level) for level, width in enumerate((4, 8, 12, 16))]
    levels = PyramidNeck([4, 8, 12, 16], 6, tokens=False)(maps)
    assert [tuple(x.shape[1:]) for x in levels] == [(6, 16, 24), (6, 8, 12), (6, 4, 6), (6, 2, 3), (6, 1, 2)]
    assert torch.equal(levels[4], levels[3][:, :, ::2, ::2])


def test_pyramid_of_tokens() -> None:
    maps = [torch.randn(1, 8, 4, 6) for _ in range(4)]
    levels = PyramidNeck([8] * 4, 6, tokens=True)(maps)
    assert [tuple(x.shape[2:]) for x in levels] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]


def test_simple_pyramid() -> None:
    """It reads the last map alone; counts are those of ViTDet's layers for D = 8 and 6 channels."""
    neck = SimpleFeaturePyramid(8, 6)
    first, last = torch.randn(1, 8, 4, 6), torch.randn(1, 8, 4, 6)
    levels = neck([first, last])
    assert [tuple(x.shape[1:]) for x in levels] == [(6, 16, 24), (6, 8, 12), (6, 4, 6), (6, 2, 3), (6, 1, 2)]
    assert all(torch.equal(one, other) for one, other in zip(levels, neck([last]), strict=True))
    enlarging = (8 * 4 * 4 + 4) + 2 * 4 + (4 * 2 * 4 + 2) + (8 * 4 * 4 + 4)
    output = sum(width * 6 + 2 * 6 + 9 * 6 * 6 + 2 * 6 for width in (2, 4, 8, 8))
    assert sum(p.numel() for p in neck.parameters()) == enlarging + output
