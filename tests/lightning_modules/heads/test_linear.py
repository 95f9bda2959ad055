"""Linear head."""

import torch
from torch.nn import functional as F

from lightning_modules.heads.linear import Linear


def test_one_map() -> None:
    """The logits of a place depend on this place alone."""
    head = Linear([6], 4).eval()
    maps = torch.randn(2, 6, 5, 3)
    expected = torch.einsum("kc,bchw->bkhw", head.classifier.weight[:, :, 0, 0], maps / (1 + 1e-5) ** 0.5)
    torch.testing.assert_close(head([maps]), expected + head.classifier.bias[:, None, None])


def test_several_maps() -> None:
    """Smaller maps are resized and joined."""
    head = Linear([6, 3], 4).eval()
    first, second = torch.randn(2, 6, 8, 6), torch.randn(2, 3, 4, 3)
    joined = torch.cat([first, F.interpolate(second, (8, 6), mode="bilinear")], dim=1)
    torch.testing.assert_close(head([first, second]), Linear.forward(head, [joined]))
    assert sum(p.numel() for p in head.parameters()) == 2 * 9 + 9 * 4 + 4
