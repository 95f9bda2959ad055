"""Images with a mask of classes: checks, joint transforms, and images of their own size in an evaluation."""

from abc import abstractmethod
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as vision
from tqdm import tqdm

from datamodules.base import Split
from datamodules.channels import MODES
from datamodules.image_module import ImageModule
from datamodules.items import Items
from datamodules.joint_transforms import centre_crop, covering_size, training_transform
from datamodules.masks import Pairs, labels_of
from datamodules.palette import palette
from datamodules.samples import ImageSample, leave_out, upright
from lightning_modules.batch import Batch


class SegmentationImages(ImageModule):
    """Images with masks; subclasses give ``samples`` and ``class_names``.

    A training crop has the size of the backbone's images. An image of an evaluation is resized with its aspect: its
    short side is that of a crop, its long side at most 4 times that. Its mask keeps the size of the file.

    Args:
        train_crop: Whether training images are resized by a random factor, cropped, mirrored and changed in colour.
            Otherwise the centre of the resized image is taken.
        scale_range: Smallest and largest factor of the size of a training image.
        photometric: Whether colours of training images change.
        square: Whether images are resized to the size of the crop without their aspect, for training in the place of a
            random factor and crop, as GPS does for SAM.
        reduce_zero_label: Whether the number 0 in a mask means no class, and 1 the first class, as in ADE20K.
        eval_batch_size: Images of an evaluation step on each device; more than 1 only for images of one size.
    """

    targets = "masks"
    opens_all = False  # because ``fitting`` opens them with their masks

    def __init__(
        self,
        train_crop: bool = True,
        scale_range: list[float] = [0.5, 2.0],  # noqa: B006 (copied below)
        photometric: bool = True,
        square: bool = False,
        reduce_zero_label: bool = False,
        eval_batch_size: int = 1,
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
            eval_batch_size=eval_batch_size,
            **kwargs,
        )
        if square and scale_range != [0.5, 2.0]:
            raise ValueError(f"scale_range={scale_range}: square=true resizes to one size; leave one of the two out")
        if len(scale_range) != 2 or not 0 < scale_range[0] <= scale_range[1]:
            raise ValueError(f"scale_range={scale_range}: expected two positive factors, the smaller one first")
        self.train_crop, self.scale_range, self.photometric = train_crop, list(scale_range), photometric
        self.reduce_zero_label, self.square = reduce_zero_label, square

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Name of every class, in the order of their numbers."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @abstractmethod
    def samples(self, split: Split) -> Pairs | None: ...

    def configure(self, input_config: dict[str, Any]) -> None:
        """Take over size, channels, mean and std of the backbone's input config.

        Raises:
            ValueError: If the backbone reads no RGB images.
        """
        super().configure(input_config)
        if self.channels != 3:
            raise ValueError(f"in_chans={self.channels}: images with masks are read as RGB; leave it out")
        colour = [round(value) for value in self.normalize.mean.flatten().tolist()]
        self.centre = v2.Resize(self.size) if self.square else centre_crop(self.size, colour)
        self.augment_both: v2.Transform = self.centre
        if self.train_crop:
            self.augment_both = training_transform(
                self.size, None if self.square else self.scale_range, colour, self.photometric
            )

    # what a published set replaces

    def labels(self, mask: Image.Image) -> Tensor:
        """Labels (1, H, W) of a mask as stored, uint8.

        Raises:
            ValueError: If it has no labels of the classes.
        """
        return labels_of(mask, self.num_classes, self.reduce_zero_label)

    @property
    def palette(self) -> list[int]:
        """Red, green and blue of 256 numbers, one after the other; the first ones are those of the classes."""
        return palette()

    def expected(self, split: str) -> int | None:
        """Published number of images of a split, if there is one."""
        return None

    def remarks(self) -> list[str]:
        """Facts about the splits that make results differ from what they seem; a run and ``check_data`` print them."""
        return []

    # items

    def both(self, sample: ImageSample) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """uint8 pixels (3, H, W) and labels (1, H, W) of a sample, in the size of the files.

        Raises:
            ValueError: If the mask has another size than the image, or no labels of the classes.
        """
        with sample.target as mask:
            labels = self.labels(mask)
        image = upright(sample.image, MODES[3])
        if labels.shape[1:] != (image.height, image.width):
            sizes = f"{labels.shape[2]} x {labels.shape[1]} pixels, the image {image.width} x {image.height}"
            raise ValueError(f"its mask has {sizes}; expected equal sizes")
        return tv_tensors.Image(vision.pil_to_tensor(image)), tv_tensors.Mask(labels)

    def item(self, sample: ImageSample) -> tuple[Tensor, Tensor]:
        """uint8 pixels (3, h, w) of the resized image, and labels (H, W) in the size of the file."""
        image, labels = self.both(sample)
        height, width = image.shape[1:]
        size = self.size if self.square else covering_size((height, width), min(self.size))
        image = vision.resize(image, list(size), self.interpolation)
        return image.as_subclass(Tensor), labels[0].long().as_subclass(Tensor)

    def train_item(self, sample: ImageSample) -> tuple[Tensor, Tensor]:
        return self.crop(self.augment_both, sample)

    def score_item(self, sample: ImageSample) -> tuple[Tensor, Tensor]:
        return self.crop(self.centre, sample)

    def view(self, sample: ImageSample) -> tuple[Any, Any]:
        raise TypeError("contrastive scores compare images by their classes, which masks are not: use another score")

    def crop(self, transform: v2.Transform, sample: ImageSample) -> tuple[Tensor, Tensor]:
        """uint8 pixels (3, h, w) and labels (h, w) of a crop."""
        image, labels = transform(*self.both(sample))
        return image.as_subclass(Tensor), labels[0].long().as_subclass(Tensor)

    def collate(self, items: list[Any]) -> Batch:
        if len({(item[0].shape, item[1].shape) for item in items}) > 1:
            raise ValueError("images of an evaluation have different sizes: pass --data.eval_batch_size 1")
        return super().collate(items)

    # checks

    def setup(self, stage: str) -> None:
        for remark in self.remarks():
            print(f"note: {remark}")
        super().setup(stage)

    def dataset(self, split: str, samples: Any) -> Items:
        return super().dataset(split, self.fitting(split, samples))

    def fitting(self, split: str, samples: Any) -> Pairs:
        """Samples whose image and mask fit; of all images, those smaller than a crop are counted.

        Raises:
            ValueError: If some do not, with the first of them.
        """
        broken: dict[int, str] = {}
        sizes: set[tuple[int, int]] = set()
        small = 0
        for index in tqdm(range(len(samples)), desc=f"checking {split}", leave=False, disable=None):
            try:
                with (sample := samples[index]).image as image:
                    self.both(sample)
                    sizes.add(image.size)
                    small += image.height < self.size[0] or image.width < self.size[1]
            except (OSError, ValueError) as error:
                broken[index] = str(error)
        if small:
            height, width = self.size
            print(f"note: {split}: {small} of {len(samples)} images are smaller than a crop, {width} x {height} pixels")
        if split != "train" and self.eval_batch_size > 1 and len(sizes) > 1:
            raise ValueError(
                f"eval_batch_size={self.eval_batch_size}: the {split} images have {len(sizes)} sizes; expected 1, and "
                "the windows of an image make a batch"
            )
        kept = leave_out(split, samples, broken, self.most_corrupt)
        assert isinstance(kept, Pairs)
        return kept

    def varies(self) -> list[str]:
        return ["data.train_crop=true"] if self.train_crop else []

    def item_settings(self) -> tuple[Any, ...]:
        return (*super().item_settings(), self.reduce_zero_label, self.class_names, self.square)

    def description(self) -> dict[str, Any]:
        return super().description() | {
            "augmentation": "crop" if self.train_crop else "none",
            "scale_range": self.scale_range,
            "photometric": self.photometric,
            "resize": "square" if self.square else "keep_ratio",
        }
