"""Images for a backbone: reading, checking, caching, resizing, augmenting and normalising."""

from typing import Any, ClassVar, Literal

import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from tqdm import tqdm

from datamodules import pixels, transforms
from datamodules.base import DataModule
from datamodules.channels import MODES, check_alpha, check_channels
from datamodules.fitting import check_targets
from datamodules.items import Items
from datamodules.normalization import Normalization, NormalizationName
from datamodules.overlap import check_overlap
from datamodules.pixels import Cache, CachedImages
from datamodules.samples import ImageSample, ImageSamples, leave_out, upright
from datamodules.transforms import Augmentation, Resize
from lightning_modules.batch import Batch
from lightning_modules.task import Targets

DECODED = 100_000  # size of a split above which only the headers are read before a run, because decoding takes hours


class ImageModule(DataModule):
    """Images in the form that the backbone of the task needs: its size, channels, filter and, by default, mean and std.

    Images travel as uint8 and become normalised floats (B, C, H, W) on the device. A subclass whose targets have the
    geometry of the image, such as masks, replaces ``item`` and ``train_item``, where both are transformed together.

    Args:
        cache: Resized uint8 images in RAM: ``ram`` keeps all, ``auto`` keeps those of a split up to 2 GiB, ``none``
            decodes each image again in every epoch.
        augmentation: ``none``; ``pad_crop`` (pad by 1/8, random crop, flip); ``crop`` (resize to 8/7, random crop,
            flip); ``rrc`` (random resized crop, flip); ``randaug`` (``rrc`` and RandAugment m9-mstd0.5);
            ``flip_randaug`` (flip and the same RandAugment on the whole image, squashed to the square, as SCT does).
        augmentation_filter: Filter of ``rrc``, ``randaug`` and ``flip_randaug``: ``same`` is that of ``interpolation``;
            ``random`` draws bilinear or bicubic for each image, as timm.
        randaug_fill: Colour that RandAugment moves in at the borders: ``imagenet`` is the mean of ImageNet, ``grey``
            128, as timm takes for backbones with the mean 0.5.
        random_erasing: Probability of erasing a random rectangle of a training image.
        erase_mixed: Whether the rectangles are erased after mixup and cutmix, as timm's prefetching loader does, and
            not before.
        resize: ``direct`` squashes to the image size (VTAB); ``tensorflow`` is the same without antialiasing (VTAB in
            VPT's code); ``center_crop`` keeps the aspect and crops the centre, as the backbone's own evaluation;
            ``square_crop`` squashes to a larger square and crops its centre (NOAH's few-shot sets), and with the
            augmentation ``crop`` a random part of it (FGVC in SPT's code).
        crop_pct: Share of the resized side that a crop keeps; the backbone's by default.
        interpolation: Filter of the resizing: ``model`` is the backbone's own, ``bilinear`` and ``bicubic`` are fixed.
        image_size: Side of the square in pixels, or ``[height, width]``; the backbone's by default.
        normalization: Mean and std: ``model`` are the backbone's own, ``imagenet`` those of ImageNet, ``inception`` 0.5
            and 0.5, ``none`` 0 and 1.
        on_corrupt: Treatment of an unreadable image: ``error`` stops the run, ``skip`` leaves the image out.
        max_corrupt: Largest share of unreadable images that ``skip`` accepts.
        allow_overlap: Whether more than 5 % of the training images may be test images as well.
    """

    unit = "image"
    targets: ClassVar[Targets] = "labels"
    opens_all: ClassVar[bool] = True  # whether every image is opened before a run, to find unreadable ones

    def __init__(
        self,
        cache: Cache = "auto",
        augmentation: Augmentation = "none",
        augmentation_filter: Literal["same", "random"] = "same",
        randaug_fill: Literal["imagenet", "grey"] = "imagenet",
        random_erasing: float = 0.0,
        erase_mixed: bool = False,
        resize: Resize = "center_crop",
        crop_pct: float | None = None,
        interpolation: Literal["model", "bilinear", "bicubic"] = "model",
        image_size: int | list[int] | None = None,
        normalization: NormalizationName = "model",
        on_corrupt: Literal["error", "skip"] = "error",
        max_corrupt: float = 0.01,
        allow_overlap: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, share in {"random_erasing": random_erasing, "max_corrupt": max_corrupt}.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name}={share}: expected a share from 0 to 1")
        if crop_pct is not None and not 0 < crop_pct <= 1:
            raise ValueError(f"crop_pct={crop_pct}: expected a share above 0 and up to 1")
        self.cache, self.resize, self.normalization = cache, resize, normalization
        self.augmentation, self.random_filter = augmentation, augmentation_filter == "random"
        self.randaug_fill, self.random_erasing, self.erase_mixed = randaug_fill, random_erasing, erase_mixed
        self.image_size = None if image_size is None else height_and_width(image_size)
        self.overrides: dict[str, Any] = {} if crop_pct is None else {"crop_pct": crop_pct}
        self.overrides |= {} if interpolation == "model" else {"interpolation": interpolation}
        self.most_corrupt = max_corrupt if on_corrupt == "skip" else None
        self.allow_overlap = allow_overlap

    def configure(self, input_config: dict[str, Any]) -> None:
        """Take over size, channels, interpolation, crop, mean and std of a backbone's input config.

        Raises:
            ValueError: If images have no form with so many channels, or no augmentation in that form.
        """
        self.channels, *sides = input_config["input_size"]
        self.size = self.image_size or (sides[0], sides[1])
        check_channels(self.channels, self.augmentation)
        input_config = input_config | self.overrides
        self.interpolation = InterpolationMode(input_config["interpolation"])
        self.crop_pct = input_config["crop_pct"]
        model = (input_config["mean"], input_config["std"])
        self.normalize = Normalization(self.normalization, model, self.channels)
        self.random_view = transforms.random_view(self.size, self.interpolation)
        self.augment: v2.Transform | None = None
        if self.augmentation == "pad_crop":
            self.augment = transforms.of_pixels(self.size)
        elif self.augmentation != "none":
            options = (self.random_filter, self.randaug_fill, self.resize == "square_crop")
            self.augment = transforms.of_stored_images(self.augmentation, self.size, self.interpolation, *options)

    def follow(self, task: Any) -> None:
        check_targets(self, task)
        super().follow(task)
        if hasattr(task, "check_input_size"):  # a task of this form of data has it
            task.check_input_size((self.channels, *self.size))

    # items

    @property
    def augments_stored(self) -> bool:
        """Whether the augmentation starts from the image as stored, so that no resized one can be cached."""
        return self.augmentation in transforms.OF_STORED_IMAGES

    def to_pixels(self, image: Image.Image) -> Tensor:
        """uint8 pixels (C, H, W) of an image."""
        return transforms.resized(image, self.size, self.resize, self.crop_pct, self.interpolation)

    def item(self, sample: ImageSample) -> tuple[Any, Any]:
        return self.to_pixels(upright(sample.image, MODES[self.channels])), sample.target

    def train_item(self, sample: ImageSample) -> tuple[Any, Any]:
        if self.augment is None:
            return self.item(sample)
        if self.augments_stored:
            return self.in_colour(self.augment, sample), sample.target
        return self.augment(*self.item(sample))

    def view(self, sample: ImageSample) -> tuple[Any, Any]:
        if self.channels == 4:  # not a ValueError, which would name the sample as unreadable
            raise TypeError("in_chans=4: random views change colours of RGB images only; use a score without views")
        return self.in_colour(self.random_view, sample), sample.target

    def in_colour(self, transform: v2.Transform, sample: ImageSample) -> Tensor:
        """uint8 pixels (C, H, W) by a transform that cannot read grey images; its colours of a grey one are equal."""
        image = upright(sample.image, MODES[self.channels])
        return transform(image.convert("RGB"))[:1] if self.channels == 1 else transform(image)

    def on_device(self, batch: Batch) -> Batch:
        """Normalised floats of uint8 pixels (B, C, H, W) in the dtype of the frozen weights, with erased rectangles."""
        images = self.normalize(batch.inputs)
        if not self.erase_mixed:
            images = self.erased(images)
        task = self.trainer.lightning_module if self.trainer is not None else None
        return batch._replace(inputs=images if task is None else images.to(task.dtype))

    def after_mixing(self, batch: Batch) -> Batch:
        return batch._replace(inputs=self.erased(batch.inputs)) if self.erase_mixed else batch

    def erased(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), in training with random rectangles erased in place."""
        if self.random_erasing and self.trainer is not None and self.trainer.training:
            return RandomErasing(self.random_erasing, mode="pixel", device=images.device)(images)
        return images

    def varies(self) -> list[str]:
        options = {"data.augmentation": self.augmentation, "data.random_erasing": self.random_erasing}
        return [f"{name}={value}" for name, value in options.items() if value not in ("none", 0)]

    def read_once(self) -> None:
        super().read_once()
        self.augmentation, self.random_erasing = "none", 0.0

    def item_settings(self) -> tuple[Any, ...]:
        return self.channels, self.size, self.resize, self.crop_pct, str(self.interpolation)

    def device_settings(self) -> tuple[Any, ...]:
        return self.normalize.settings()

    def description(self) -> dict[str, Any]:
        return super().description() | {
            "augmentation": self.augmentation,
            "resize": self.resize,
            "image_size": [*self.size],
            "crop_pct": self.crop_pct,
            "interpolation": self.interpolation.value,
            "normalization": self.normalization,
        }

    # datasets

    def dataset(self, split: str, samples: Any) -> Items:
        """Dataset of a split, after a check of its samples: cached, or decoded at every access."""
        self.check_samples(split, samples)
        check_alpha(split, samples, self.channels)
        if split == "train" and self.test_follows:
            check_overlap(samples, self.samples("test"), self.allow_overlap)
        train, size = split == "train", len(samples) * self.channels * self.size[0] * self.size[1]
        live = self.cache == "none" or (self.cache == "auto" and size > pixels.CACHE_LIMIT)
        if live or (train and self.augments_stored):
            samples = openable(split, samples, self.most_corrupt) if self.opens_all else samples
            return Items(samples, self.train_item if train else self.item)
        found = pixels.share(samples, self.digest, lambda: self.decode(split, samples))
        return CachedImages(*found, self.augment if train else None)

    def decode(self, split: str, samples: ImageSamples) -> tuple[ImageSamples, Tensor]:
        """Samples that can be read, and their uint8 pixels (N, C, H, W)."""
        found = torch.empty(len(samples), self.channels, *self.size, dtype=torch.uint8)
        broken: dict[int, str] = {}
        for index in tqdm(range(len(samples)), desc=f"caching {split}", leave=False, disable=None):
            try:
                with (sample := samples[index]).image:  # otherwise the file of a broken image stays open
                    found[index], _ = self.item(sample)
            except (OSError, ValueError) as error:
                broken[index] = str(error)
        kept = leave_out(split, samples, broken, self.most_corrupt)
        if broken:
            found = found[[index for index in range(len(found)) if index not in broken]]
        return kept, found


def openable(split: str, samples: ImageSamples, most_corrupt: float | None) -> ImageSamples:
    """Samples whose images can be decoded; of a split above ``DECODED``, those whose headers can be read."""
    broken: dict[int, str] = {}
    decode = len(samples) <= DECODED
    for index in tqdm(range(len(samples)), desc=f"checking {split}", leave=False, disable=None):
        try:
            with samples.open(index) as image:
                if decode:
                    image.draft("RGB", (1, 1))  # of a JPEG, an eighth of the pixels, and still all of the file
                    image.load()
        except (OSError, ValueError) as error:
            broken[index] = str(error)
    return leave_out(split, samples, broken, most_corrupt)


def height_and_width(image_size: int | list[int]) -> tuple[int, int]:
    """Height and width in pixels of the option ``image_size``.

    Raises:
        ValueError: If it is no size.
    """
    sides = [image_size, image_size] if isinstance(image_size, int) else image_size
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"image_size={image_size}: expected a number of pixels, or [height, width]")
    return sides[0], sides[1]
