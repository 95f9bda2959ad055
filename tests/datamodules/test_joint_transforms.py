"""Joint transforms of an image and its mask."""

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from datamodules.joint_transforms import VariedCrop, centre_crop, covering_size, is_varied, training_transform


def pair(height: int = 40, width: int = 60) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """Image whose red channel is its mask times 50."""
    labels = (torch.arange(width) * 4 // width).expand(1, height, width)
    image = torch.cat([labels * 50, torch.full((2, height, width), 7)]).to(torch.uint8)
    return tv_tensors.Image(image), tv_tensors.Mask(labels.to(torch.uint8))


@pytest.mark.parametrize(
    ("size", "short", "expected"),
    [
        ((480, 640), 512, (512, 683)),
        ((100, 1000), 512, (205, 2048)),
        ((768, 512), 256, (384, 256)),
        ((3, 3), 8, (8, 8)),
    ],
)
def test_size_of_a_resized_image(size: tuple[int, int], short: int, expected: tuple[int, int]) -> None:
    """Those of mmsegmentation for the scale (2048, 512)."""
    assert covering_size(size, short) == expected


def test_image_and_mask_stay_together() -> None:
    """Where no pixel is padded or interpolated, the red channel still is the mask."""
    torch.manual_seed(0)
    transform = training_transform((32, 32), [0.5, 2.0], [1, 2, 3], photometric=False)
    for _ in range(8):
        image, labels = transform(*pair())
        assert image.shape == (3, 32, 32)
        assert labels.shape == (1, 32, 32)
        inside = labels[0] != 255
        assert (image[1][~inside] == 2).all()
        assert (image[1][inside] == 7).float().mean() > 0.9
        close = (image[0].float() / 50 - labels[0]).abs()[inside] < 0.2
        assert close.float().mean() > 0.75


def test_random_parts() -> None:
    """Sizes, places, mirrors and, if wanted, colours differ between calls."""
    torch.manual_seed(0)
    fixed = training_transform((40, 40), [1.0, 1.0], [0, 0, 0], photometric=False)
    assert len({tuple(fixed(*pair())[1].flatten().tolist()) for _ in range(6)}) > 1
    image = tv_tensors.Image(torch.randint(255, (3, 32, 32), dtype=torch.uint8))
    mask = tv_tensors.Mask(torch.arange(32).repeat(1, 32, 1).to(torch.uint8))
    colours = training_transform((32, 32), [1.0, 1.0], [0, 0, 0], photometric=True)
    pixels = [out.sort().values for out in ((colours(image, mask)[0]).flatten() for _ in range(6))]
    assert any(not torch.equal(pixels[0], other) for other in pixels[1:])


def test_share_of_a_class() -> None:
    labels = torch.zeros(1, 10, 10, dtype=torch.uint8)
    assert not is_varied(labels)
    labels[:, :3] = 1
    assert is_varied(labels)
    labels[:, :8] = 255
    assert not is_varied(labels)
    assert not is_varied(torch.full_like(labels, 255))


def test_crop_is_drawn_anew() -> None:
    """A corner holds the only second class, of which most crops have too little."""
    torch.manual_seed(0)
    labels = torch.zeros(1, 64, 64, dtype=torch.uint8)
    labels[:, :24, :24] = 1
    image = tv_tensors.Image(torch.zeros(3, 64, 64, dtype=torch.uint8))
    crops = VariedCrop((32, 32), [0, 0, 0]), v2.RandomCrop((32, 32))
    with_rule, without = ([is_varied(crop(image, tv_tensors.Mask(labels))[1]) for _ in range(40)] for crop in crops)
    assert sum(without) < 10 < 15 < sum(with_rule)


def test_centre() -> None:
    image, labels = centre_crop((32, 32), [1, 2, 3])(*pair(40, 60))
    assert image.shape == (3, 32, 32)
    assert 255 not in labels
    image, labels = centre_crop((32, 64), [1, 2, 3])(*pair(40, 40))
    assert image.shape == (3, 32, 64)
    assert (labels[0, :, :16] == 255).all()
    assert (labels[0, :, 16:48] != 255).all()
    assert image[:, 0, 0].tolist() == [1, 2, 3]
