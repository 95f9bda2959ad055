"""Reading, checking, caching, augmenting and normalising, on images made here."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from PIL import Image
from timm.data import create_transform

from datamodules import image_module
from datamodules.samples import open_image
from lightning_modules.batch import Batch
from tests.support.pictures import INPUT, Bytes, Listed, encode, picture, pictures


def test_one_pixel() -> None:
    module = Listed({"train": Bytes([encode(Image.new("RGB", (1, 1), (9, 8, 7)))] * 2, [0, 1])}, batch_size=1)
    pixels, _ = module.dataset("train", module.given["train"])[0]
    assert pixels.shape == (3, 16, 16)
    assert pixels.amax((1, 2)).tolist() == pixels.amin((1, 2)).tolist() == [9, 8, 7]


WHOLE = encode(picture(0, 200, 200), "JPEG")


BROKEN = {
    "zero bytes": b"",
    "no image": b"hello, I am a text",
    "truncated header": encode(picture(0))[:20],
    "extreme aspect": encode(Image.new("L", (2000, 10))),
}


@pytest.mark.parametrize("cache", ["ram", "none"])
@pytest.mark.parametrize("kind", BROKEN)
def test_broken_image_stops_the_run(kind: str, cache: Any) -> None:
    samples = pictures()
    samples.files[4] = BROKEN[kind]
    with pytest.raises(ValueError, match=r"test: 1 of 6 images cannot be read, first image 4 .*on_corrupt skip"):
        Listed(cache=cache).dataset("test", samples)


@pytest.mark.parametrize("cache", ["ram", "none"])
@pytest.mark.parametrize("kind", BROKEN)
def test_broken_image_is_left_out(kind: str, cache: Any, capsys: pytest.CaptureFixture[str]) -> None:
    samples = pictures()
    whole = Listed().dataset("test", samples)
    samples.files[4] = BROKEN[kind]
    dataset: Any = Listed(cache=cache, on_corrupt="skip", max_corrupt=0.2).dataset("test", samples)
    assert len(dataset) == 5
    for index, original in enumerate((0, 1, 2, 3, 5)):
        assert torch.equal(dataset[index][0], whole[original][0])
        assert dataset[index][1] == whole[original][1]
    assert "1 of 6 images cannot be read, first image 4; left out" in capsys.readouterr().out


def test_too_many_broken_images() -> None:
    samples = pictures()
    samples.files[1] = samples.files[4] = b""
    with pytest.raises(ValueError, match=r"2 of 6 .* first image 1: more than --data.max_corrupt 20%"):
        Listed(on_corrupt="skip", max_corrupt=0.2).dataset("test", samples)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("cache", ["ram", "none"])
def test_truncated_body_is_found_before_the_run(cache: Any, kind: str) -> None:
    samples, whole = pictures(), encode(picture(2, 200, 200), kind)
    samples.files[2] = whole[: len(whole) // 2]
    with pytest.raises(ValueError, match=r"(?i)first image 2 .*truncated"):
        Listed(cache=cache).dataset("test", samples)


def test_truncated_body_of_a_very_large_set_is_named_when_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_module, "DECODED", 5)
    samples = pictures()
    samples.files[2] = WHOLE[: len(WHOLE) // 2]
    dataset = Listed(cache="none").dataset("test", samples)  # its header is whole
    with pytest.raises(ValueError, match=r"(?i)image 2 cannot be read: .*truncated"):
        dataset[2]


def test_files_are_closed(tmp_path: Path) -> None:
    """A check of 2,000 files must not hold 2,000 files open; an unclosed one is a warning, hence an error here."""
    picture(0).save(tmp_path / "0.png")

    class OneFile(Bytes):
        def open(self, index: int) -> Image.Image:
            return open_image(str(tmp_path / "0.png"))

    Listed(cache="none").dataset("test", OneFile([b""], [0]))


@pytest.mark.parametrize("share", [0.0, 1.1])
def test_crop_pct_is_a_share(share: float) -> None:
    with pytest.raises(ValueError, match=rf"crop_pct={share}: expected a share"):
        Listed(crop_pct=share)


def test_side_before_the_crop_is_timm_s() -> None:
    module = Listed(resize="center_crop", crop_pct=0.9, image_size=224)
    module.configure(INPUT)
    image = picture(1, 300, 280)
    expected: Any = create_transform(224, interpolation="bicubic", crop_pct=0.9, use_prefetcher=True)(image)
    assert torch.equal(module.to_pixels(image), torch.as_tensor(expected))


def test_image_size_wins_over_the_backbone() -> None:
    assert Listed(image_size=8).to_pixels(picture(0)).shape == (3, 8, 8)
    assert Listed(image_size=[8, 12]).to_pixels(picture(0)).shape == (3, 8, 12)


def test_cache_changes_no_pixel() -> None:
    samples = pictures()
    cached, live = (Listed(cache=cache).dataset("test", samples) for cache in ("ram", "none"))
    assert type(cached) is not type(live)
    for index in range(6):
        assert torch.equal(cached[index][0], live[index][0])
        assert cached[index][1] == live[index][1]


@pytest.mark.parametrize("augmentation", ["none", "pad_crop", "crop", "rrc", "randaug", "flip_randaug"])
@pytest.mark.parametrize("cache", ["ram", "none"])
def test_augmentation(augmentation: Any, cache: Any) -> None:
    files = [
        encode(picture(0)),
        encode(picture(1, 7, 40)),
        encode(picture(2, mode="L")),
        encode(Image.new("RGB", (1, 1), (9, 8, 7))),
    ]
    module = Listed(batch_size=2, augmentation=augmentation, cache=cache)
    train, test = (module.dataset(split, Bytes(files, [0, 1, 2, 0])) for split in ("train", "test"))
    torch.manual_seed(0)
    for index in range(4):
        assert train[index][0].dtype is torch.uint8
        assert train[index][0].shape == (3, 16, 16)
    draws = {tuple(train[0][0].flatten().tolist()) for _ in range(5)}
    assert (len(draws) == 1) == (augmentation == "none")
    plain = Listed(batch_size=2).dataset("test", Bytes(files, [0, 1, 2, 0]))
    assert torch.equal(test[0][0], plain[0][0]), "evaluation is augmented"


@pytest.mark.parametrize(
    ("normalization", "mean", "std"),
    [
        ("model", INPUT["mean"], INPUT["std"]),
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("inception", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("none", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    ],
)
def test_normalization(normalization: Any, mean: Any, std: Any) -> None:
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    labels = torch.tensor([0, 1])
    batch = Batch.of(images, labels)
    out, same, valid = Listed(normalization=normalization).on_after_batch_transfer(batch, 0)
    expected = (images.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=0)
    assert out.dtype is torch.float32
    assert same is labels
    assert valid is batch.valid


def test_random_erasing_in_training_alone() -> None:
    module = Listed(random_erasing=1.0, normalization="none")
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    batch = Batch.of(torch.full((4, 3, 16, 16), 100, dtype=torch.uint8), torch.zeros(4))
    assert module.on_after_batch_transfer(batch, 0).inputs.unique().numel() == 1
    module.trainer.training = True
    assert module.on_after_batch_transfer(batch, 0).inputs.unique().numel() > 1


def test_erasing_of_mixed_images() -> None:
    """``erase_mixed``: the batch arrives whole on the device, and its rectangles are erased after mixup."""
    module = Listed(random_erasing=1.0, erase_mixed=True, normalization="none")
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module.trainer.training = True
    batch = Batch.of(torch.full((4, 3, 16, 16), 100, dtype=torch.uint8), torch.zeros(4))
    whole = module.on_after_batch_transfer(batch, 0)
    assert whole.inputs.unique().numel() == 1
    assert module.after_mixing(whole).inputs.unique().numel() > 1
    before = Listed(random_erasing=1.0, normalization="none")
    before.trainer = module.trainer
    assert before.after_mixing(batch) is batch
