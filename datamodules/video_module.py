"""Videos for a backbone of images: choice of frames, views of an evaluation, augmentation and checks."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2
from tqdm import tqdm

from datamodules.base import Split
from datamodules.clip_transforms import TrainCrop, covering, crops, training_transform
from datamodules.clips import Clips, ClipSample
from datamodules.frame_sampling import evaluation_frames, training_frames
from datamodules.image_module import DECODED
from datamodules.items import Items
from datamodules.labelled_images import LabelledImages
from datamodules.overlap import check_overlap
from datamodules.samples import leave_out
from lightning_modules.batch import Batch


class VideoModule(LabelledImages):
    """Videos, each of one class; subclasses give ``samples``, ``num_classes`` and ``class_names``.

    An item has the frames of one clip (T, 3, H, W), and in a test those of all views, one after the other. On the
    device all frames of a batch become the rows of one batch of images.

    Args:
        frames: Frames T of a clip.
        stride: Frames of the video from one frame of a clip to the next, 16 on K400; 0 spreads the frames evenly over
            the whole video, as on SSv2.
        test_views: Clips that a test takes from a video with a stride, evenly from its start to its end.
        test_crops: Crops of each of these clips: 1 for the centre, 3 for the start, the middle and the end of the
            longer side. A test averages the logits over clips and crops; a validation takes one clip and its centre.
        train_crop: Training frames. ``none``: the centre, as in an evaluation. ``jitter``: a random size of 1 to 1.15
            times the crop and a random place (K400). ``rrc``: random resized crop (SSv2).
        flip: Whether half of the training clips are mirrored; leave it off if a class tells left from right.
        randaugment: Whether RandAugment m7-n4-mstd0.5 changes training frames, without an operation that mirrors.
        antialias: Whether resizing averages over the pixels that it leaves out; the code of DyT does not.
        min_frames: Fewest frames of a video; a shorter one counts as unreadable. A video with fewer frames than a clip
            repeats some of them.
    """

    unit = "clip"

    def __init__(
        self,
        frames: int = 8,
        stride: int = 0,
        test_views: int = 1,
        test_crops: int = 1,
        train_crop: TrainCrop = "rrc",
        flip: bool = False,
        randaugment: bool = False,
        antialias: bool = True,
        min_frames: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            cache="none",
            augmentation="none",
            augmentation_filter="same",
            randaug_fill="imagenet",
            random_erasing=0.0,
            erase_mixed=False,
            resize="center_crop",
            crop_pct=None,
            **kwargs,
        )
        for name, value in {"frames": frames, "test_views": test_views, "min_frames": min_frames}.items():
            if value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        if stride < 0:
            raise ValueError(f"stride={stride}: expected a number of frames, or 0 to spread them over the whole video")
        if stride == 0 and test_views > 1:
            raise ValueError(
                f"test_views={test_views}: with stride=0 a clip has the whole video; pass --data.stride 16"
            )
        if test_crops not in (1, 3):
            raise ValueError(f"test_crops={test_crops}: expected 1 for the centre, or 3 along the longer side")
        if randaugment and train_crop == "none":
            raise ValueError("randaugment=true: expected train_crop=rrc or jitter too")
        self.frames, self.stride, self.min_frames = frames, stride, min_frames
        self.test_views, self.test_crops = test_views, test_crops
        self.train_crop, self.flip, self.randaugment, self.antialias = train_crop, flip, randaugment, antialias

    @abstractmethod
    def samples(self, split: Split) -> Clips | None: ...

    def expected(self, split: str) -> int | None:
        """Published number of videos of a split, if there is one."""
        return None

    def configure(self, input_config: dict[str, Any]) -> None:
        """Take over size, channels, filter, mean and std of a backbone's input config.

        Raises:
            ValueError: If the backbone reads no RGB images.
        """
        super().configure(input_config)
        if self.channels != 3:
            raise ValueError(f"in_chans={self.channels}: videos are read as RGB; leave it out")
        self.transform: v2.Transform | None = None
        if self.train_crop != "none":
            how = self.train_crop, self.randaugment, self.flip
            self.transform = training_transform(*how, self.size, self.interpolation, self.antialias)

    # items

    def item(self, sample: Any) -> tuple[Tensor, int]:
        """uint8 frames (T, 3, H, W) of the clip and crop in the middle, and the class."""
        return self.views(sample, 1, 1), sample.target

    def test_item(self, sample: ClipSample) -> tuple[Tensor, int]:
        """uint8 frames (V T, 3, H, W) of all views, and the class."""
        return self.views(sample, self.test_views, self.test_crops), sample.target

    def views(self, sample: ClipSample, clips: int, count: int) -> Tensor:
        """uint8 frames (clips count T, 3, H, W) of ``clips`` clips and ``count`` crops of each."""
        chosen = evaluation_frames(self.length(sample), self.frames, self.stride, clips)
        frames = sample.video.read([index for indices in chosen for index in indices])
        whole = covering(frames, self.size, self.interpolation, self.antialias)
        return torch.cat([crop for clip in whole.split(self.frames) for crop in crops(clip, self.size, count)])

    def train_item(self, sample: Any) -> tuple[Tensor, int]:
        """uint8 frames (T, 3, H, W) of a random clip, augmented, and the class."""
        frames = sample.video.read(training_frames(self.length(sample), self.frames, self.stride))
        if self.transform is None:
            (frames,) = crops(covering(frames, self.size, self.interpolation, self.antialias), self.size, 1)
            return v2.RandomHorizontalFlip(0.5 if self.flip else 0.0)(frames), sample.target
        return self.transform(frames), sample.target

    def view(self, sample: Any) -> tuple[Any, Any]:
        raise TypeError("contrastive scores compare views of images, which clips are not: use another score")

    def length(self, sample: ClipSample) -> int:
        """Frames of a video.

        Raises:
            ValueError: If there are none, or fewer than ``min_frames``.
        """
        length = len(sample.video)
        if length < self.min_frames:
            raise ValueError(f"it has {length} frames; expected at least {self.min_frames}")
        return length

    def on_device(self, batch: Batch) -> Batch:
        """Normalised frames (B T, 3, H, W) of clips (B, T, 3, H, W), uint8."""
        return super().on_device(batch._replace(inputs=batch.inputs.flatten(0, 1)))

    # checks

    def dataset(self, split: str, samples: Any) -> Items:
        """Dataset of a split, after a check of its samples."""
        self.check_samples(split, samples)
        if split == "train" and self.test_follows:
            check_overlap(samples, self.samples("test"), self.allow_overlap, "video")
        make = {"train": self.train_item, "val": self.item, "test": self.test_item}[split]
        return Items(self.readable(split, samples), make)

    def readable(self, split: str, samples: Clips) -> Clips:
        """Samples whose last frame can be decoded; of a split above ``DECODED``, those that can be opened.

        Raises:
            ValueError: If too many cannot, with the first of them.
        """
        broken, short = dict[int, str](), list[int]()
        for index in tqdm(range(len(samples)), desc=f"checking {split}", leave=False, disable=None):
            try:
                length = self.length(samples[index])
                if len(samples) <= DECODED:
                    samples[index].video.read([length - 1])
                if length < self.frames:
                    short.append(index)
            except (OSError, ValueError) as error:
                broken[index] = str(error)
        if short:
            print(
                f"note: {split}: {len(short)} of {len(samples)} videos have fewer than {self.frames} frames and repeat "
                f"some, first {samples.name(short[0])}"
            )
        return leave_out(split, samples, broken, self.most_corrupt, "video")

    # facts

    def varies(self) -> list[str]:
        clip = "stride" if self.stride else "frames"
        return [f"data.{clip}={getattr(self, clip)}"]  # because a training clip has random frames

    def item_settings(self) -> tuple[Any, ...]:
        views = self.test_views, self.test_crops
        return (*super().item_settings(), self.frames, self.stride, *views, self.antialias)

    def description(self) -> dict[str, Any]:
        augmentation = [
            self.train_crop,
            *(["randaugment"] if self.randaugment else []),
            *(["flip"] if self.flip else []),
        ]
        return super().description() | {
            "augmentation": "+".join(augmentation),
            "frames": self.frames,
            "stride": self.stride,
            "test_views": self.test_views * self.test_crops,
        }
