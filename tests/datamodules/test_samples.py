"""Colour modes, and files that are no images."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules.files import Files
from datamodules.samples import open_image, upright


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


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
    assert [upright(decoded(data), mode).mode for mode in ("L", "RGBA")] == ["L", "RGBA"]
    image = upright(decoded(data))
    assert image.mode == "RGB"
    assert image.size == (5, 4)
    assert image.getpixel((2, 2)) == colour


def test_cmyk_jpeg() -> None:
    red = upright(decoded(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))).getpixel((8, 8))
    assert isinstance(red, tuple)
    assert red[0] > 240
    assert max(red[1:]) < 15


def test_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (30, 20))
    image.paste((255, 255, 255), (0, 0, 15, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright: the left half comes to the top
    turned = upright(decoded(encode(image, "JPEG", exif=exif, quality=95)))
    assert turned.size == (20, 30)
    assert [turned.getpixel((10, y))[0] > 128 for y in (5, 25)] == [True, False]  # type: ignore[index]


def test_decompression_bomb_is_an_unreadable_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(OSError, match="decompression bomb"):
        open_image(io.BytesIO(encode(Image.new("RGB", (24, 20)))))


def test_a_pipe_is_an_unreadable_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(OSError, match=r"pipe.png is no regular file"):
        open_image(tmp_path / "pipe.png")
    with pytest.raises(OSError, match=r"pipe.png is no regular file"):
        Files(tmp_path, ["pipe.png"], [0]).content(0)
