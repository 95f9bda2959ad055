"""Images with objects: checks, joint transforms, and batches of images of several sizes."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as vision

from datamodules.base import Split
from datamodules.channels import MODES
from datamodules.image_module import ImageModule
from datamodules.items import Items
from datamodules.joint_transforms import object_transform
from datamodules.object_checks import usable
from datamodules.objects import Objects, ObjectSamples, Size, learnable, masks_of
from datamodules.samples import ImageSample, upright
from lightning_modules.batch import Batch


class DetectionImages(ImageModule):
    """Images with objects; subclasses give ``samples`` and ``class_names``.

    An image is resized with its aspect, and the images of a batch are padded at the right and at the bottom. Boxes and
    masks of an evaluation keep the size of the file.

    Args:
        short_sides: Pixels of the short side. Training draws one of them for each image, an evaluation takes the
            largest.
        long_side: Pixels of the long side, at most; the short side of a long image is smaller.
        flip: Whether half of the training images are mirrored.
        jitter: Smallest and largest factor of large-scale jitter (arXiv:2012.07177), ``[0.1, 2.0]`` for its strong
            form: a training image has that factor of the size at which it fits into a square of ``long_side``, and the
            square is cut from it or padded. None for the sizes of ``short_sides``.
    """

    targets = "objects"
    opens_all = False  # because ``usable`` opens them

    def __init__(
        self,
        short_sides: list[int] = [800],  # noqa: B006 (copied below)
        long_side: int = 1333,
        flip: bool = True,
        jitter: list[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            cache="none",
            augmentation="none",
            augmentation_filter="same",
            randaug_fill="imagenet",
            random_erasing=0.0,
            erase_mixed=False,
            resize="direct",
            crop_pct=None,
            interpolation="bilinear",
            image_size=None,
            **kwargs,
        )
        if not short_sides or min(short_sides) < 1 or max(short_sides) > long_side:
            raise ValueError(
                f"short_sides={short_sides}, long_side={long_side}: expected pixels, none above the long side"
            )
        if jitter is not None and (len(jitter) != 2 or not 0 < jitter[0] <= jitter[1]):
            raise ValueError(f"jitter={jitter}: expected two positive factors, the smaller one first")
        self.short_sides, self.long_side, self.flip = sorted(short_sides), long_side, flip
        self.jitter = None if jitter is None else list(jitter)
        self.divisor, self.masks = 32, True

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Name of every class, in the order of their numbers from 1."""

    @property
    def num_classes(self) -> int:
        """Number of classes without the background."""
        return len(self.class_names)

    @property
    def category_ids(self) -> list[int]:
        """Number of each class in files of predictions."""
        return list(range(1, self.num_classes + 1))

    @abstractmethod
    def samples(self, split: Split) -> ObjectSamples | None: ...

    def expected(self, split: str) -> int | None:
        """Published number of images of a split, if there is one."""
        return None

    def follow(self, task: Any) -> None:
        self.divisor, self.masks = getattr(task, "divisor", self.divisor), getattr(task, "with_masks", self.masks)
        super().follow(task)

    def configure(self, input_config: dict[str, Any]) -> None:
        """Take over channels, mean and std of the backbone's input config.

        Raises:
            ValueError: If the backbone reads no RGB images.
        """
        super().configure(input_config)
        if self.channels != 3:
            raise ValueError(f"in_chans={self.channels}: images with objects are read as RGB; leave it out")
        self.size = self.padded(self.short_sides[-1], self.long_side)  # the largest one of an evaluation
        colour = [round(value) for value in self.normalize.mean.flatten().tolist()]
        self.colour = torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1)
        largest = self.short_sides[-1:]
        self.resized = v2.RandomShortestSize(largest, self.long_side)
        self.centre = object_transform(largest, self.long_side, False, None, colour)
        self.augment_both = object_transform(self.short_sides, self.long_side, self.flip, self.jitter, colour)

    def padded(self, height: int, width: int) -> Size:
        """Size of a padded batch whose largest image has this height and width."""
        return -(-height // self.divisor) * self.divisor, -(-width // self.divisor) * self.divisor

    # items

    def stored(self, sample: ImageSample) -> tuple[tv_tensors.Image, Objects, Size]:
        """uint8 pixels (3, H, W) of an image, its objects, and its size."""
        image = upright(sample.image, MODES[3])
        return tv_tensors.Image(vision.pil_to_tensor(image)), sample.target, (image.height, image.width)

    def item(self, sample: ImageSample) -> tuple[Tensor, dict[str, Any]]:
        """uint8 pixels (3, h, w) of the resized image, and objects in the size of the file."""
        image, objects, size = self.stored(sample)
        image = self.resized(image)
        target = {
            "boxes": objects.boxes,
            "labels": objects.labels,
            "iscrowd": objects.crowd.long(),
            "area": objects.area,
            "size": tuple(image.shape[1:]),
            "original": size,
        }
        return image.as_subclass(Tensor), target | self.masks_with(objects, size)

    def train_item(self, sample: ImageSample) -> tuple[Tensor, dict[str, Any]]:
        return self.transformed(self.augment_both, sample)

    def score_item(self, sample: ImageSample) -> tuple[Tensor, dict[str, Any]]:
        return self.transformed(self.centre, sample)

    def view(self, sample: ImageSample) -> tuple[Any, Any]:
        raise TypeError("contrastive scores compare images by their classes, which objects are not: use another score")

    def transformed(self, transform: v2.Transform, sample: ImageSample) -> tuple[Tensor, dict[str, Any]]:
        """uint8 pixels (3, h, w) and objects after a transform of both."""
        image, objects, size = self.stored(sample)
        objects = learnable(objects, size)
        boxes = tv_tensors.BoundingBoxes(objects.boxes, format="XYXY", canvas_size=size)
        parts = {"boxes": boxes, "labels": objects.labels} | self.masks_with(objects, size)
        image, parts = transform(image, parts)
        plain = {name: part.as_subclass(Tensor) for name, part in parts.items()}
        return image.as_subclass(Tensor), plain | {"size": tuple(image.shape[1:]), "original": size}

    def masks_with(self, objects: Objects, size: Size) -> dict[str, Tensor]:
        """Masks (n, H, W) of objects, if the task reads masks."""
        return {"masks": tv_tensors.Mask(masks_of(objects.shapes or [], size))} if self.masks else {}

    # batches

    def collate(self, items: list[Any]) -> Batch:
        """Batch of padded images (B, 3, H, W) and a target for each."""
        images, targets, valid = zip(*[item if len(item) == 3 else (*item, True) for item in items], strict=True)
        height, width = self.padded(*(max(sides) for sides in zip(*(x.shape[1:] for x in images), strict=True)))
        batch = self.colour.repeat(len(images), 1, height, width)
        for place, image in zip(batch, images, strict=True):
            place[:, : image.shape[1], : image.shape[2]] = image
        return Batch(batch, [packed(target, torch.float32, torch.int32) for target in targets], torch.tensor(valid))

    def on_device(self, batch: Batch) -> Batch:
        targets = [packed(target, torch.int32, torch.float32) for target in batch.targets]
        return super().on_device(batch)._replace(targets=targets)

    # checks

    def dataset(self, split: str, samples: Any) -> Items:
        return super().dataset(split, usable(split, samples, self.masks, self.most_corrupt))

    def varies(self) -> list[str]:
        options = {"data.flip": self.flip, "data.jitter": self.jitter, "data.short_sides": self.short_sides[1:]}
        found = [f"{name}={getattr(self, name.removeprefix('data.'))}" for name, value in options.items() if value]
        return [*found, "padding to the largest image of a batch"]

    def item_settings(self) -> tuple[Any, ...]:
        return (*super().item_settings(), self.short_sides[-1], self.long_side, self.class_names, self.masks)

    def description(self) -> dict[str, Any]:
        return super().description() | {
            "augmentation": "none" if not self.flip else "flip" if self.jitter is None else "flip, jitter",
            "short_sides": self.short_sides,
            "long_side": self.long_side,
            "jitter": self.jitter,
            "resize": "keep_ratio",
        }


def packed(target: dict[str, Any], old: torch.dtype, new: torch.dtype) -> dict[str, Any]:
    """Target whose tensors of one dtype are read as another one, without a change of their bits.

    Boxes travel as integers, because Lightning rounds all floats of a batch for ``bf16-true``, and a rounded box is off
    by pixels.
    """
    tensors = {name: value for name, value in target.items() if isinstance(value, Tensor) and value.dtype is old}
    return target | {name: tensor.view(new) for name, tensor in tensors.items()}
