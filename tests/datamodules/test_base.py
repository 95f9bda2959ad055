"""Reading, checking, caching, augmenting and normalising, on images made here."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from datamodules import base
from datamodules.base import ImageDataModule, shared_pixels
from datamodules.samples import open_image

INPUT = {
    "input_size": (3, 16, 16),
    "mean": (0.1, 0.2, 0.3),
    "std": (0.4, 0.5, 0.6),
    "interpolation": "bicubic",
    "crop_pct": 0.8,
}


class Bytes:
    """Samples that are encoded images."""

    def __init__(self, files: list[bytes], labels: list[int]) -> None:
        self.files, self.labels = files, torch.tensor(labels, dtype=torch.long)

    def open(self, index: int) -> Image.Image:
        return open_image(io.BytesIO(self.files[index]))

    def content(self, index: int) -> bytes:
        return self.files[index]

    def name(self, index: int) -> str:
        return f"image {index}"

    def keep(self, indices: list[int]) -> "Bytes":
        return Bytes([self.files[i] for i in indices], self.labels[indices].tolist())


class Listed(ImageDataModule):
    """A datamodule over lists of encoded images, configured without a trainer."""

    def __init__(self, splits: dict[str, Bytes] | None = None, num_classes: int = 3, **options: Any) -> None:
        super().__init__(**options)
        self.given, self.num_classes = splits or {}, num_classes
        self.configure(INPUT)

    def samples(self, split: str) -> Bytes | None:
        return self.given.get(split)


def picture(seed: int, width: int = 24, height: int = 20, mode: str = "RGB") -> Image.Image:
    channels = {"RGB": 3, "RGBA": 4, "CMYK": 4, "LA": 2}.get(mode)
    shape = (height, width, channels) if channels else (height, width)
    # neighbouring values, so that JPEG and resizing keep them
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8) // 8 + 100
    return Image.fromarray(pixels, mode if mode in ("CMYK", "LA") else None)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def pictures(count: int = 6, num_classes: int = 3) -> Bytes:
    return Bytes([encode(picture(seed)) for seed in range(count)], [seed % num_classes for seed in range(count)])


def test_one_pixel() -> None:
    module = Listed({"train": Bytes([encode(Image.new("RGB", (1, 1), (9, 8, 7)))] * 2, [0, 1])}, batch_size=1)
    pixels, _ = module.dataset("train", module.given["train"])[0]
    assert pixels.shape == (3, 16, 16)
    assert pixels.amax((1, 2)).tolist() == pixels.amin((1, 2)).tolist() == [9, 8, 7]


# unreadable images

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
    monkeypatch.setattr(base, "DECODED", 5)
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


# labels and sizes of splits


@pytest.mark.parametrize("label", [-1, 3, 77])
def test_label_outside_the_classes(label: int) -> None:
    samples = pictures()
    samples.labels[[2, 5]] = label
    with pytest.raises(ValueError, match=rf"val: image 2 has label {label}, outside 0 to 2 \(2 such samples\)"):
        Listed().dataset("val", samples)


def test_empty_split() -> None:
    with pytest.raises(ValueError, match="the val split is empty"):
        Listed().dataset("val", Bytes([], []))


def test_batch_larger_than_the_train_split() -> None:
    with pytest.raises(ValueError, match="batch_size=7 is larger than the 6 training images"):
        Listed(batch_size=7).dataset("train", pictures())
    Listed(batch_size=7).dataset("test", pictures())  # evaluation keeps a small last batch
    Listed(batch_size=7, drop_last=False).dataset("train", pictures())


def test_class_without_training_images(capsys: pytest.CaptureFixture[str]) -> None:
    Listed(num_classes=5, batch_size=2).dataset("train", pictures())
    assert "2 of 5 classes have no training image" in capsys.readouterr().out


def test_batch_size_below_one() -> None:
    with pytest.raises(ValueError, match="batch_size=0: expected at least 1"):
        Listed(batch_size=0)


# pixels


def test_resize_direct_by_hand() -> None:
    image = picture(1, 50, 31)
    expected = torch.from_numpy(np.array(image.resize((16, 16), Image.Resampling.BICUBIC))).permute(2, 0, 1)
    assert torch.equal(Listed(resize="direct").prepare(image), expected)


def test_resize_center_crop_by_hand() -> None:
    image = picture(1, 50, 31)  # the short side becomes 16 / 0.8 = 20, the long one 32
    resized = image.resize((32, 20), Image.Resampling.BICUBIC).crop((8, 2, 24, 18))
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
    assert torch.equal(Listed(resize="center_crop").prepare(image), expected)


def test_resize_square_crop_by_hand() -> None:
    image = picture(1, 50, 31)
    resized = image.resize((18, 18), Image.Resampling.BILINEAR).crop((1, 1, 17, 17))
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
    module = Listed(resize="square_crop", crop_pct=0.85, interpolation="bilinear")  # 16 / 0.85 = 18.8
    assert torch.equal(module.prepare(image), expected)


@pytest.mark.parametrize("share", [0.0, 1.1])
def test_crop_pct_is_a_share(share: float) -> None:
    with pytest.raises(ValueError, match=rf"crop_pct={share}: expected a share"):
        Listed(crop_pct=share)


def test_side_before_the_crop_is_timm_s() -> None:
    module = Listed(resize="center_crop", crop_pct=0.9, image_size=224)
    module.configure(INPUT)
    image = picture(1, 300, 280)
    expected: Any = create_transform(224, interpolation="bicubic", crop_pct=0.9, use_prefetcher=True)(image)
    assert torch.equal(module.prepare(image), torch.as_tensor(expected))


def test_image_size_wins_over_the_backbone() -> None:
    module = Listed()
    module.image_size = 8
    module.configure(INPUT)
    assert module.prepare(picture(0)).shape == (3, 8, 8)


def test_cache_changes_no_pixel() -> None:
    samples = pictures()
    cached, live = (Listed(cache=cache).dataset("test", samples) for cache in ("ram", "none"))
    assert type(cached) is not type(live)
    for index in range(6):
        assert torch.equal(cached[index][0], live[index][0])
        assert cached[index][1] == live[index][1]


def test_shared_pixels_are_made_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    made: list[int] = []
    original = ImageDataModule.decode
    monkeypatch.setattr(ImageDataModule, "decode", lambda *args: (made.append(1), original(*args))[1])
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
        monkeypatch.setattr(base, "CACHE_LIMIT", 5 * 3 * 16 * 16)
        Listed(cache="ram").dataset("test", pictures(5, 2))
        assert len(base.shared or ()) == 1
    Listed().dataset("test", pictures(5))
    assert len(made) == 7


def test_auto_cache_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = pictures()
    assert isinstance(Listed().dataset("test", samples), base.CachedImages)
    monkeypatch.setattr(base, "CACHE_LIMIT", 6 * 3 * 16 * 16 - 1)
    assert isinstance(Listed().dataset("test", samples), base.LiveImages)
    assert isinstance(Listed(cache="ram").dataset("test", samples), base.CachedImages)


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


def test_strongest_draw_of_randaugment() -> None:
    """A magnitude is drawn around 9; one that is cut off at 10 asks to posterize to no bits at all."""
    transform: Any = Listed(augmentation="randaug").live_transform()
    (policy,) = (part for part in transform.transforms if hasattr(part, "ops"))
    assert any("Posterize" in op.name for op in policy.ops)
    for op in policy.ops:
        op.prob, op.magnitude = 1.0, 99
        assert op(picture(0)).size == (24, 20)


def test_augmentation_resizes_as_the_backbone_wants() -> None:
    for augmentation in ("crop", "rrc", "randaug", "flip_randaug"):
        resize: Any = Listed(augmentation=augmentation).live_transform().transforms[0]
        assert resize.interpolation.value == "bicubic", augmentation
    assert list(resize.size) == [16, 16], "flip_randaug squashes the whole image"


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
    out, same = Listed(normalization=normalization).on_after_batch_transfer((images, labels), 0)
    expected = (images.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=0)
    assert out.dtype is torch.float32
    assert same is labels


def test_random_erasing_in_training_alone() -> None:
    module = Listed(random_erasing=1.0, normalization="none")
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    images = torch.full((4, 3, 16, 16), 100, dtype=torch.uint8)
    assert module.on_after_batch_transfer((images, None), 0)[0].unique().numel() == 1
    module.trainer.training = True
    assert module.on_after_batch_transfer((images, None), 0)[0].unique().numel() > 1


# loaders


def test_train_loader_drops_the_rest_and_evaluation_does_not() -> None:
    module = Listed({"train": pictures(7), "test": pictures(7)}, batch_size=3, num_workers=0)
    module.splits = {split: module.dataset(split, samples) for split, samples in module.given.items()}
    assert [len(labels) for _, labels in module.train_dataloader()] == [3, 3]
    assert [len(labels) for _, labels in module.test_dataloader()] == [3, 3, 1]
    assert module.val_dataloader() == []
    module.drop_last = False
    assert [len(labels) for _, labels in module.train_dataloader()] == [3, 3, 1]
    module.eval_batch_size = 5
    assert [len(labels) for _, labels in module.predict_dataloader()] == [5, 2]


def test_workers_only_where_something_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    for cache, workers in {"ram": 0, "none": 1}.items():
        module: Any = Listed(batch_size=2, cache=cache)
        module.splits = {split: module.dataset(split, pictures()) for split in ("train", "test")}
        assert module.train_dataloader().num_workers == module.test_dataloader().num_workers == workers
    assert Listed(num_workers=0).loader(module.splits["test"], 2).num_workers == 0


@pytest.mark.parametrize(
    "option",
    [
        {"eval_batch_size": -3},
        {"num_workers": -1},
        {"random_erasing": 7.0},
        {"max_corrupt": 7.0},
        {"image_size": 0},
    ],
    ids=str,
)
def test_options_out_of_range(option: dict[str, Any]) -> None:
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=f"{name}={value}: expected"):
        Listed(**option)


def test_workers_start_when_the_epoch_is_known() -> None:
    """A resumed run makes its iterator before it knows its epoch."""

    def batches(late: int | None) -> list[Tensor]:
        module = Listed({"train": pictures(12)}, batch_size=4, num_workers=2, augmentation="rrc", cache="none")
        module.trainer = None
        module.configure(INPUT)
        module.splits["train"] = module.dataset("train", pictures(12))
        loader: Any = module.train_dataloader()
        if late is None:
            loader.sampler.set_epoch(3)
            return [pixels for pixels, _ in loader]
        iterator = iter(loader)
        loader.sampler.set_epoch(late)
        return [pixels for pixels, _ in iterator]

    expected = batches(None)
    assert all(torch.equal(a, b) for a, b in zip(batches(3), expected, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(batches(1), expected, strict=True))


def test_test_split_is_missed_before_a_fit_that_it_follows() -> None:
    module = Listed({split: pictures() for split in ("train", "val")}, batch_size=2)
    module.trainer = SimpleNamespace(lightning_module=SimpleNamespace(input_config=INPUT))  # type: ignore[assignment]
    module.test_follows = True
    with pytest.raises(ValueError, match="the data have no test split, and test_after_fit asks for one"):
        module.setup("fit")


@pytest.mark.parametrize(("stage", "missing"), [("fit", "train"), ("validate", "val"), ("test", "test")])
def test_missing_split(stage: str, missing: str) -> None:
    module = Listed({split: pictures() for split in ("train", "val", "test") if split != missing}, batch_size=2)
    module.trainer = SimpleNamespace(lightning_module=SimpleNamespace(input_config=INPUT))  # type: ignore[assignment]
    with pytest.raises(ValueError, match=f"the data have no {missing} split"):
        module.setup(stage)
    assert module.validates == (missing != "val")
