"""The cache of decoded images."""

import pytest
import torch

from datamodules import pixels
from datamodules.items import Items
from datamodules.pixels import CachedImages, shared_pixels
from tests.support.pictures import Bytes, Listed, pictures


def test_shared_pixels_are_made_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    made: list[int] = []
    original = Listed.decode
    monkeypatch.setattr(Listed, "decode", lambda *args: (made.append(1), original(*args))[1])
    with shared_pixels():
        first, second = (Listed().dataset("test", pictures(5)) for _ in range(2))
        assert len(made) == 1
        assert all(torch.equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(first, second, strict=True))  # type: ignore[call-overload]
        Listed(resize="direct" if Listed().resize != "direct" else "center_crop").dataset("test", pictures(5))
        Listed().dataset("test", pictures(4))
        assert len(made) == 3
        broken = Bytes([*pictures(5).files, b""], [0, 1, 2, 0, 1, 2])
        for _ in range(2):  # every run says it
            Listed(on_corrupt="skip", max_corrupt=0.5).dataset("test", broken)
            assert "1 of 6 images cannot be read" in capsys.readouterr().out
        monkeypatch.setattr(pixels, "CACHE_LIMIT", 5 * 3 * 16 * 16)
        Listed(cache="ram").dataset("test", pictures(5, 2))
        assert len(pixels.shared or ()) == 1
    Listed().dataset("test", pictures(5))
    assert len(made) == 7


def test_auto_cache_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = pictures()
    assert isinstance(Listed().dataset("test", samples), CachedImages)
    monkeypatch.setattr(pixels, "CACHE_LIMIT", 6 * 3 * 16 * 16 - 1)
    assert type(Listed().dataset("test", samples)) is Items
    assert isinstance(Listed(cache="ram").dataset("test", samples), CachedImages)
