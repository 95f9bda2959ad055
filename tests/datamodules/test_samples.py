"""Colour modes, files that are no images, padding and the order of an epoch."""

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from datamodules.loading import EpochSampler, Padded
from datamodules.samples import CachedImages, open_image, to_rgb
from lightning_modules.batch import PADDING


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def labelled(count: int) -> Any:
    return SimpleNamespace(labels=torch.arange(count) % 3)


def decoded(data: bytes) -> Image.Image:
    return open_image(io.BytesIO(data))


# colour modes


def grey(value: int) -> Image.Image:
    return Image.new("L", (5, 4), value)


RED_PALETTE = Image.new("P", (5, 4), 1)
RED_PALETTE.putpalette([0, 0, 0, 255, 0, 0])


MODES = {
    "grey": (encode(grey(77)), (77, 77, 77)),
    "bilevel": (encode(Image.new("1", (5, 4), 1)), (255, 255, 255)),
    "grey and alpha": (encode(Image.new("LA", (5, 4), (77, 9))), (77, 77, 77)),
    "rgba": (encode(Image.new("RGBA", (5, 4), (10, 20, 30, 128))), (10, 20, 30)),
    "palette": (encode(RED_PALETTE), (255, 0, 0)),
    "transparent palette": (encode(RED_PALETTE, transparency=0), (255, 0, 0)),
    "gif": (encode(RED_PALETTE, "GIF"), (255, 0, 0)),
    "cmyk": (encode(Image.new("CMYK", (5, 4), (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
    "16-bit png": (encode(Image.fromarray(np.full((4, 5), 0x80C0, np.uint16))), (128, 128, 128)),
    "16-bit tiff": (encode(Image.fromarray(np.full((4, 5), 0xFFFF, np.uint16)), "TIFF"), (255, 255, 255)),
    "bmp": (encode(Image.new("RGB", (5, 4), (10, 20, 30)), "BMP"), (10, 20, 30)),
}


@pytest.mark.parametrize(("data", "colour"), MODES.values(), ids=MODES)
def test_modes_become_rgb(data: bytes, colour: tuple[int, int, int]) -> None:
    image = to_rgb(decoded(data))
    assert image.mode == "RGB"
    assert image.size == (5, 4)
    assert image.getpixel((2, 2)) == colour


def test_cmyk_jpeg() -> None:
    red = to_rgb(decoded(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))).getpixel((8, 8))
    assert isinstance(red, tuple)
    assert red[0] > 240
    assert max(red[1:]) < 15


def test_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (30, 20))
    image.paste((255, 255, 255), (0, 0, 15, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright: the left half comes to the top
    upright = to_rgb(decoded(encode(image, "JPEG", exif=exif, quality=95)))
    assert upright.size == (20, 30)
    assert [upright.getpixel((10, y))[0] > 128 for y in (5, 25)] == [True, False]  # type: ignore[index]


def test_decompression_bomb_is_an_unreadable_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(OSError, match="decompression bomb"):
        open_image(io.BytesIO(encode(Image.new("RGB", (24, 20)))))


def test_padding_evens_out_the_ranks() -> None:
    samples = CachedImages(labelled(5), torch.rand(5, 3, 4, 4), None)
    padded = Padded(samples, 4)
    assert len(padded) == 8
    labels = [padded[index][1] for index in range(8)]
    assert labels == [0, 1, 2, 0, 1, PADDING, PADDING, PADDING]
    assert torch.equal(padded[7][0], samples[4][0])
    assert len(Padded(samples, 5)) == 5


def test_epoch_sampler_depends_on_seed_and_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset: Any = torch.arange(10)

    def order(seed: int, epoch: int, world_size: int = 1, rank: int = 0) -> tuple[list[int], Tensor]:
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        sampler = EpochSampler(dataset, world_size, rank)
        sampler.set_epoch(epoch)
        return list(sampler), torch.rand(3, generator=sampler.generator)

    first, draw = order(0, 0)
    torch.manual_seed(123)  # the global generator plays no part
    again, same_draw = order(0, 0)
    assert first == again
    assert torch.equal(draw, same_draw)
    assert sorted(first) == list(range(10))
    assert order(0, 1)[0] != first
    assert not torch.equal(order(0, 1)[1], draw)
    assert order(1, 0)[0] != first
    shares = [order(0, 0, 2, rank)[0] for rank in (0, 1)]
    assert sorted(shares[0] + shares[1]) == list(range(10))
