"""Mean and std; tests/datamodules/test_image_module.py has the numbers of each name."""

import pickle

import torch

from datamodules.normalization import Normalization

MODEL = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_settings_are_plain_numbers() -> None:
    mean, std = Normalization("model", MODEL, 3).settings()
    torch.testing.assert_close(torch.tensor(mean), torch.tensor(MODEL[0]).view(3, 1, 1) * 255)
    torch.testing.assert_close(torch.tensor(std), torch.tensor(MODEL[1]).view(3, 1, 1) * 255)


def test_grey_images_have_the_average() -> None:
    """As timm does for a backbone of one channel."""
    found = Normalization("model", MODEL, 1)(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8))
    torch.testing.assert_close(found, torch.full((1, 1, 2, 2), (1 - 0.2) / 0.5))


def test_copies_of_a_device_stay_here() -> None:
    """A worker process gets mean and std, and none of the copies on a GPU."""
    normalize = Normalization("inception", MODEL, 3)
    normalize(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
    assert len(normalize.copies) == 1
    assert pickle.loads(pickle.dumps(normalize)).copies == {}
