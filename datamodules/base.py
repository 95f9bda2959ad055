"""What every image datamodule shares: reading, checking, caching, augmenting and normalising."""

import hashlib
import os
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as vision
from tqdm import tqdm

from datamodules.loading import EpochSampler, Padded, TrainLoader, collate
from datamodules.samples import CachedImages, FrozenFeatures, LiveImages, Samples, to_rgb
from lightning_modules.batch import Batch, Features
from lightning_modules.seed import run_seed

CACHE_LIMIT = 2 * 1024**3  # bytes of uint8 pixels that ``cache: auto`` keeps in memory
DECODED = 100_000  # images of a split that are decoded before a run, to see that all can be read
shared: dict[str, Tensor] | None = None  # pixels of the splits that were read last, by their digest, while runs share
NORMALIZATIONS = {
    "imagenet": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


@contextmanager
def shared_pixels() -> Iterator[None]:
    """Inside, images are decoded and resized once for all runs of the process, up to ``CACHE_LIMIT``."""
    global shared
    shared = {}
    try:
        yield
    finally:
        shared = None


class ImageDataModule(LightningDataModule):
    """Labelled images for a backbone; subclasses say where the samples of a split are.

    Images follow the backbone that the trainer holds: its size, its interpolation and, by default, its mean and std.
    They travel as uint8 and become normalised floats (B, 3, H, W) on the device.

    Args:
        batch_size: Images per step and device.
        eval_batch_size: Images per evaluation step and device; ``batch_size`` if not given.
        num_workers: Worker processes; by default none over a cache, else one per core up to 8.
        cache: Keep resized uint8 images in RAM: ``auto`` does so up to 2 GiB a split.
        augmentation: ``none``; ``pad_crop`` (pad by 1/8, random crop, flip); ``crop`` (resize to 8/7, random crop,
            flip); ``rrc`` (random resized crop, flip); ``randaug`` (``rrc`` and RandAugment m9-mstd0.5);
            ``flip_randaug`` (the same without a crop, squashed to the square, as SCT does).
        random_erasing: Probability of erasing a random rectangle of a training image.
        resize: ``direct`` squashes to the square (VTAB), ``center_crop`` keeps the aspect as the backbone's recipe,
            ``square_crop`` squashes to a larger square and crops it (NOAH's few-shot tasks).
        crop_pct: Share of the resized side that a crop keeps; the backbone's by default.
        interpolation: How images are resized: as the backbone's were (``model``) or a fixed filter.
        image_size: Side of the square in pixels; the backbone's by default.
        normalization: Mean and std: the backbone's own (``model``) or a fixed pair.
        drop_last: Leave out the last training batch of an epoch if it is incomplete.
        on_corrupt: What an unreadable image does: stop, or be left out.
        max_corrupt: Largest share of unreadable images that ``skip`` accepts.
    """

    num_classes: int
    class_names: list[str]

    def __init__(
        self,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        cache: Literal["auto", "ram", "none"] = "auto",
        augmentation: Literal["none", "pad_crop", "crop", "rrc", "randaug", "flip_randaug"] = "none",
        random_erasing: float = 0.0,
        resize: Literal["direct", "center_crop", "square_crop"] = "center_crop",
        crop_pct: float | None = None,
        interpolation: Literal["model", "bilinear", "bicubic"] = "model",
        image_size: int | None = None,
        normalization: Literal["model", "imagenet", "inception", "none"] = "model",
        drop_last: bool = True,
        on_corrupt: Literal["error", "skip"] = "error",
        max_corrupt: float = 0.01,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected at least 1")
        if eval_batch_size is not None and eval_batch_size < 1:
            raise ValueError(f"eval_batch_size={eval_batch_size}: expected at least 1, or none for batch_size")
        if num_workers is not None and num_workers < 0:
            raise ValueError(f"num_workers={num_workers}: expected 0 or more")
        for name, share in {"random_erasing": random_erasing, "max_corrupt": max_corrupt}.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name}={share}: expected a share from 0 to 1")
        if image_size is not None and image_size < 1:
            raise ValueError(f"image_size={image_size}: expected a number of pixels")
        if crop_pct is not None and not 0 < crop_pct <= 1:
            raise ValueError(f"crop_pct={crop_pct}: expected a share above 0 and up to 1")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.num_workers, self.cache = num_workers, cache
        self.augmentation, self.random_erasing = augmentation, random_erasing
        self.resize, self.image_size, self.normalization = resize, image_size, normalization
        self.overrides: dict[str, Any] = {} if crop_pct is None else {"crop_pct": crop_pct}
        self.overrides |= {} if interpolation == "model" else {"interpolation": interpolation}
        self.drop_last = drop_last
        self.on_corrupt, self.max_corrupt = on_corrupt, max_corrupt
        self.splits: dict[str, Dataset[tuple[Tensor, int]]] = {}
        self.test_follows = False  # whether a fit is tested at once, so that its data must be there before

    @abstractmethod
    def samples(self, split: Literal["train", "val", "test"]) -> Samples | None:
        """The samples of a split, or None where the data have no such split."""

    @property
    def validates(self) -> bool:
        """Whether there is a validation split."""
        return self.samples("val") is not None

    @property
    def selection(self) -> str:
        """Which epoch a fit keeps, for its results."""
        return "best validation epoch" if self.validates else "last epoch"

    @property
    def expected(self) -> dict[str, int | None]:
        """Every list of samples that ``samples_of`` knows, with its published size."""
        splits: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")
        return {split: None for split in splits if self.samples(split) is not None}

    def samples_of(self, name: str) -> Samples:
        """The samples of one list of ``expected``."""
        return self.samples(name)  # type: ignore[return-value,arg-type]

    def description(self) -> dict[str, Any]:
        """What a result file says about the data."""
        devices = self.trainer.world_size * self.trainer.accumulate_grad_batches if self.trainer else 1
        return {
            "data": getattr(self, "root", type(self).__name__),
            "dataset": type(self).__name__,
            "images": {split: len(dataset) for split, dataset in self.splits.items()},  # type: ignore[arg-type]
            "effective_batch_size": self.batch_size * devices,
            "augmentation": self.augmentation,
            "resize": self.resize,
            "interpolation": self.interpolation.value,
            "normalization": self.normalization,
        }

    def setup(self, stage: str) -> None:
        # the trainer's module knows what its backbone wants
        self.configure(self.trainer.lightning_module.input_config)  # type: ignore[union-attr,arg-type]
        wanted: dict[str, tuple[Literal["train", "val", "test"], ...]]
        wanted = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}
        if stage == "fit" and self.test_follows and self.samples("test") is None:
            raise ValueError("the data have no test split, and test_after_fit asks for one")
        for split in wanted[stage]:
            if split not in self.splits:
                samples = self.samples(split)
                if samples is not None:
                    self.splits[split] = self.dataset(split, samples)
                elif split != "val" or stage == "validate":
                    raise ValueError(f"the data have no {split} split")
                else:
                    self.trainer.limit_val_batches = 0  # type: ignore[union-attr] # an empty list is warned about

    def configure(self, input_config: dict[str, Any]) -> None:
        """Take size, interpolation, crop and normalisation from a backbone's input config."""
        self.size = self.image_size or input_config["input_size"][-1]
        input_config = input_config | self.overrides
        self.interpolation = InterpolationMode(input_config["interpolation"])
        self.crop_pct = input_config["crop_pct"]
        model = (input_config["mean"], input_config["std"])
        mean, std = NORMALIZATIONS.get(self.normalization, model)
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (mean, std))

    def dataset(self, split: str, samples: Samples) -> Dataset[tuple[Tensor, int]]:
        """Check the samples of a split, then cache them or leave them to the workers."""
        if not len(samples.labels):
            raise ValueError(f"the {split} split is empty")
        outside = ((samples.labels < 0) | (samples.labels >= self.num_classes)).nonzero().flatten()
        if len(outside):
            first = int(outside[0])
            raise ValueError(
                f"{split}: {samples.name(first)} has label {int(samples.labels[first])}, outside 0 to "
                f"{self.num_classes - 1} ({len(outside)} such samples)"
            )
        if split == "train" and self.drop_last and self.batch_size > len(samples.labels):
            raise ValueError(f"batch_size={self.batch_size} is larger than the {len(samples.labels)} training images")
        if split == "train":
            missing = self.num_classes - len(samples.labels.unique())
            if missing:
                print(f"note: {missing} of {self.num_classes} classes have no training image")
        live = split == "train" and self.augmentation in ("crop", "rrc", "randaug", "flip_randaug")
        augment = self.cached_transform() if split == "train" and self.augmentation == "pad_crop" else None
        pixels = len(samples.labels) * 3 * self.size**2
        if self.cache == "none" or live or (self.cache == "auto" and pixels > CACHE_LIMIT):
            steps = [self.prepare] if augment is None else [self.prepare, augment]
            transform = self.live_transform() if live else v2.Compose(steps)
            return LiveImages(self.check(split, samples), transform)
        return self.cached(split, samples, augment)

    def prepare(self, image: Image.Image) -> Tensor:
        """The deterministic part: an RGB image to uint8 pixels (3, S, S), resized by PIL as the published code does."""
        size = [self.size, self.size]
        if self.resize == "direct":
            image = vision.resize(image, size, self.interpolation)
        else:
            side = int(self.size / self.crop_pct)  # rounded down, as timm does: 248 for 224 at 0.9
            whole = [side] if self.resize == "center_crop" else [side, side]
            image = vision.center_crop(vision.resize(image, whole, self.interpolation), size)
        return vision.pil_to_tensor(image)

    def cached_transform(self) -> v2.Transform:
        crop = v2.RandomCrop(self.size, padding=self.size // 8, padding_mode="reflect")
        return v2.Compose([crop, v2.RandomHorizontalFlip()])

    def live_transform(self) -> v2.Transform:
        """Random part for images as stored, from PIL to uint8 pixels (3, S, S)."""
        if self.augmentation == "crop":
            resize = v2.Resize(round(self.size * 8 / 7), self.interpolation)
            return v2.Compose([resize, v2.RandomCrop(self.size), v2.RandomHorizontalFlip(), v2.PILToTensor()])
        policy = "rand-m9-mstd0.5-inc1" if self.augmentation.endswith("randaug") else None
        # timm leaves out the float conversion when a prefetcher is to do it, as on_after_batch_transfer does here
        transform = create_transform(
            self.size,
            is_training=True,
            auto_augment=policy,
            color_jitter=0.0,
            interpolation=self.interpolation.value,
            use_prefetcher=True,
        )
        for op in (op for part in transform.transforms for op in getattr(part, "ops", [])):
            op.magnitude_max = 9.99  # at 10 posterize keeps no bit of a pixel: a black image, which Pillow 13 refuses
        if self.augmentation == "flip_randaug":
            transform.transforms[0] = v2.Resize([self.size, self.size], self.interpolation)
        return v2.Compose([*transform.transforms, torch.as_tensor])

    def check(self, split: str, samples: Samples) -> Samples:
        """Decode every image, of a very large set its header alone; a broken one stops the run or is left out."""
        broken: dict[int, Exception] = {}
        decode = len(samples.labels) <= DECODED
        for index in tqdm(range(len(samples.labels)), desc=f"checking {split}", leave=False, disable=None):
            try:
                with samples.open(index) as image:
                    if decode:
                        image.draft("RGB", (1, 1))  # of a JPEG, an eighth of the pixels, and still all of the file
                        image.load()
            except (OSError, ValueError) as error:
                broken[index] = error
        return self.leave_out(split, samples, broken)

    def cached(self, split: str, samples: Samples, augment: v2.Transform | None) -> CachedImages:
        """Decode and resize every image once."""
        if shared is None:
            return CachedImages(*self.decode(split, samples), augment)
        try:
            key = self.digest(samples)
        except OSError:  # to decode them tells which
            key = ""
        if key in shared:
            return CachedImages(samples, shared[key], augment)
        kept, pixels = self.decode(split, samples)
        if kept is samples:  # nothing was left out, which every run should say again
            shared[key] = pixels
            while sum(tensor.nbytes for tensor in shared.values()) > CACHE_LIMIT:
                del shared[next(iter(shared))]
        return CachedImages(kept, pixels, augment)

    def decode(self, split: str, samples: Samples) -> tuple[Samples, Tensor]:
        """The samples that can be read, and their uint8 pixels (N, 3, S, S)."""
        pixels = torch.empty(len(samples.labels), 3, self.size, self.size, dtype=torch.uint8)
        broken: dict[int, Exception] = {}
        for index in tqdm(range(len(pixels)), desc=f"caching {split}", leave=False, disable=None):
            try:
                pixels[index] = self.prepare(to_rgb(samples.open(index)))
            except (OSError, ValueError) as error:
                broken[index] = error
        kept = self.leave_out(split, samples, broken)
        if broken:
            pixels = pixels[[index for index in range(len(pixels)) if index not in broken]]
        return kept, pixels

    def leave_out(self, split: str, samples: Samples, broken: dict[int, Exception]) -> Samples:
        if not broken:
            return samples
        total = len(samples.labels)
        first = next(iter(broken))
        message = f"{split}: {len(broken)} of {total} images cannot be read, first {samples.name(first)}"
        if self.on_corrupt == "error":
            raise ValueError(f"{message} ({broken[first]}). Repair it, or pass --data.on_corrupt skip")
        if len(broken) > self.max_corrupt * total:
            raise ValueError(f"{message}: more than --data.max_corrupt {self.max_corrupt:.0%} of the split")
        print(f"note: {message}; left out")
        return samples.keep([index for index in range(total) if index not in broken])

    def score_batches(
        self,
        batch_size: int,
        max_batches: int | None = None,
        shuffle: bool = False,
        drop_last: bool = False,
        views: int = 1,
        passes: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> Iterator[Batch]:
        """Training images for scoring: pixels (views * B, 3, S, S) and labels (B,), the same batches for any world.

        Args:
            batch_size: Images of a batch.
            max_batches: Number of batches at most.
            shuffle: Whether the order is drawn from the seed rather than that of the files.
            drop_last: Whether an incomplete last batch is left out.
            views: 1 for the test-time transform, more for that many random views of each image.
            passes: How often all images pass, in another order each time where it is drawn.
            rank: Which share of the batches: number rank, rank + world, ...
            world: Number of shares.
        """
        dataset: Any = self.splits["train"]
        seed = run_seed()
        count = len(dataset)
        draw = torch.Generator().manual_seed(seed)
        orders = [torch.randperm(count, generator=draw) if shuffle else torch.arange(count) for _ in range(passes)]
        batches = [batch for order in orders for batch in order.split(batch_size)]
        batches = [batch for batch in batches if len(batch) == batch_size or not drop_last][:max_batches]
        if not batches:
            raise ValueError(f"scoring batches of {batch_size} images: the train split has only {count}")
        for number in range(rank, len(batches), world):
            torch.manual_seed(seed + number)  # views depend on the batch, not on who makes it
            transform = self.prepare if views == 1 else self.view_transform()
            indices = batches[number].tolist()
            images = [transform(to_rgb(dataset.samples.open(i))) for _ in range(views) for i in indices]
            labels = dataset.samples.labels[batches[number]]
            yield Batch.of(torch.stack(images), labels)

    def digest(self, samples: Samples) -> str:
        """What tells these images, labels and their way to pixels from all others."""
        how = (self.size, self.resize, self.crop_pct, str(self.interpolation))
        digest = hashlib.sha256(repr(how).encode())
        for index, label in enumerate(samples.labels.tolist()):
            content = samples.content(index)
            digest.update(f"{label} {len(content)} ".encode() + content)
        return digest.hexdigest()

    def fingerprint(self, split: str) -> str:
        """What tells the images of a split, as a model sees them without augmentation, from all others."""
        samples = self.splits[split].samples  # type: ignore[attr-defined]
        whole = repr((self.digest(samples), self.mean.tolist(), self.std.tolist()))
        return hashlib.sha256(whole.encode()).hexdigest()

    def view_transform(self) -> v2.Transform:
        """A random view as contrastive losses want it, from PIL to uint8 pixels (3, S, S)."""
        crop = v2.RandomResizedCrop(self.size, interpolation=self.interpolation)
        jitter = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
        return v2.Compose([crop, v2.RandomHorizontalFlip(), jitter, v2.RandomGrayscale(0.2), v2.PILToTensor()])

    def score_fingerprint(self) -> str:
        """What tells one set of scoring images from another."""
        samples = self.splits["train"].samples  # type: ignore[attr-defined]
        some = [samples.name(i) for i in range(0, len(samples.labels), max(len(samples.labels) // 64, 1))]
        parts = (some, samples.labels.tolist(), self.size, self.resize, self.crop_pct, str(self.interpolation))
        return hashlib.sha256(repr((parts, self.mean.tolist(), self.std.tolist())).encode()).hexdigest()

    def train_dataloader(self) -> DataLoader[Any]:
        dataset, trainer = self.splits["train"], self.trainer
        sampler = EpochSampler(dataset, trainer.world_size if trainer else 1, trainer.global_rank if trainer else 0)
        sampler.set_epoch(trainer.current_epoch if trainer else 0)  # Lightning says it only from the second epoch on
        # workers that live on would carry their random state over, and a resumed run would augment differently
        options = {
            "sampler": sampler,
            "generator": sampler.generator,
            "drop_last": self.drop_last,
            "persistent_workers": False,
        }
        return self.loader(dataset, self.batch_size, TrainLoader, **options)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        return self.eval_loader("val") if "val" in self.splits else []

    def test_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        return self.eval_loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.loader(self.splits["test"], self.eval_batch_size)

    def eval_loader(self, split: str) -> DataLoader[Any]:
        # equal shares for all ranks without counting a sample twice: a distributed sampler would repeat real ones
        dataset = Padded(self.splits[split], self.trainer.world_size if self.trainer else 1)
        return self.loader(dataset, self.eval_batch_size)

    def loader(
        self, dataset: Dataset[Any], batch_size: int, kind: type[DataLoader[Any]] = DataLoader, **options: Any
    ) -> DataLoader[Any]:
        source, workers = getattr(dataset, "dataset", dataset), self.num_workers
        if isinstance(source, FrozenFeatures):  # nothing is read, decoded or copied to be pinned
            return DataLoader(dataset, batch_size, collate_fn=source.gather, **options)
        if workers is None:
            workers = 0 if isinstance(source, CachedImages) else min(os.cpu_count() or 1, 8)
        defaults: dict[str, Any] = {
            "collate_fn": collate,
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }
        return kind(dataset, batch_size=batch_size, **defaults | options)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """uint8 pixels to normalised floats, on the device."""
        if isinstance(batch.inputs, Features):
            return batch
        images = (batch.inputs - self.mean.to(batch.inputs.device)) / self.std.to(batch.inputs.device)
        if self.random_erasing and self.trainer is not None and self.trainer.training:
            images = RandomErasing(self.random_erasing, mode="pixel", device=images.device)(images)
        return batch._replace(inputs=images)
