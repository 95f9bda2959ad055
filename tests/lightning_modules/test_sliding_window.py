"""Sliding windows."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.sliding_window import multi_scale, slide, window_ends
from tests.support.golden import Golden


def pointwise(x: Tensor) -> Tensor:
    """Model whose logits of a pixel depend on this pixel alone."""
    return torch.stack([x.sum(1), x[:, 0] - x[:, 1]], dim=1)


def test_golden(pytestconfig: pytest.Config) -> None:
    """Windows, their number and the mean of the published code."""
    file = Path(pytestconfig.getoption("--golden-dir")) / "dense_tasks.safetensors"
    found = Golden(file).part("slide")
    *sides, count = found["cfg"].tolist()
    seen = 0

    def model(x: Tensor) -> Tensor:
        nonlocal seen
        seen += len(x)
        return F.conv2d(x, found["weight"], found["bias"], padding=1)

    logits = slide(model, found["input"], (sides[0], sides[1]), (sides[2], sides[3]))
    torch.testing.assert_close(logits, found["output"], atol=1e-5, rtol=0)
    assert seen == count


def test_ends_of_windows() -> None:
    assert window_ends(512, 512, 341) == [512]
    assert window_ends(683, 512, 341) == [512, 683]
    assert window_ends(1024, 512, 341) == [512, 853, 1024]


@pytest.mark.parametrize("size", [(20, 33), (5, 33), (5, 6), (8, 8)])
def test_equal_to_the_whole_image(size: tuple[int, int]) -> None:
    """Also for images that are smaller than a window, and for more windows than one pass takes."""
    images = torch.randn(2, 3, *size)
    torch.testing.assert_close(slide(pointwise, images, (8, 8), (5, 3)), pointwise(images))


def test_several_sizes() -> None:
    """Class probabilities are averaged; one size without a mirror gives the logits themselves."""
    images = torch.randn(1, 3, 9, 12)
    one = multi_scale(pointwise, images, (8, 8), (5, 5), [1.0], False)
    torch.testing.assert_close(one, pointwise(images))
    mirrored = multi_scale(pointwise, images, (8, 8), (5, 5), [1.0], True)
    torch.testing.assert_close(mirrored, one.log_softmax(1))

    def left(x: Tensor) -> Tensor:
        """Model that finds the class 1 in the left half."""
        logits = torch.zeros(len(x), 2, *x.shape[2:])
        logits[:, 1, :, : x.shape[3] // 2] = 50.0
        return logits

    shares = multi_scale(left, torch.zeros(1, 3, 8, 8), (8, 8), (8, 8), [1.0], True).exp()
    torch.testing.assert_close(shares[0, 1], torch.full((8, 8), 0.75))
    smaller = multi_scale(left, torch.zeros(1, 3, 8, 8), (8, 8), (8, 8), [0.5, 1.0], False)
    assert smaller.shape == (1, 2, 8, 8)
