"""Test sets for a classifier of the 1,000 ImageNet classes: ImageNet-A, -R, -V2, -Sketch and -C."""

from abc import abstractmethod
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Literal

from PIL import Image
from torch.utils.data import DataLoader, Subset

from datamodules.base import Split
from datamodules.files import Files, class_folders, existing
from datamodules.imagenet import WNIDS
from datamodules.items import Padded
from datamodules.labelled_images import LabelledImages
from datamodules.pixels import Cache
from datamodules.samples import LabelledSamples, open_image, regular
from datamodules.transforms import Resize

# classes of ImageNet-A and ImageNet-R among the 1,000; 86 are in both
A = """
6 11 13 15 17 22 23 27 30 37 39 42 47 50 57 70 71 76 79 89 90 94 96 97 99 105 107 108 110 113 124 125 130 132 143
144 150 151 207 234 235 254 277 283 287 291 295 298 301 306 307 308 309 310 311 313 314 315 317 319 323 324 326 327
330 334 335 336 347 361 363 372 378 386 397 400 401 402 404 407 411 416 417 420 425 428 430 437 438 445 456 457 461
462 470 472 483 486 488 492 496 514 516 528 530 539 542 543 549 552 557 561 562 569 572 573 575 579 589 606 607 609
614 626 627 640 641 642 643 658 668 677 682 684 687 701 704 719 736 746 749 752 758 763 765 768 773 774 776 779 780
786 792 797 802 803 804 813 815 820 823 831 833 835 839 845 847 850 859 862 870 879 880 888 890 897 900 907 913 924
932 933 934 937 943 945 947 951 954 956 957 959 971 972 980 981 984 986 987 988
"""
R = """
1 2 4 6 8 9 11 13 22 23 26 29 31 39 47 63 71 76 79 84 90 94 96 97 99 100 105 107 113 122 125 130 132 144 145 147 148
150 151 155 160 161 162 163 171 172 178 187 195 199 203 207 208 219 231 232 234 235 242 245 247 250 251 254 259 260
263 265 267 269 276 277 281 288 289 291 292 293 296 299 301 308 309 310 311 314 315 319 323 327 330 334 335 337 338
340 341 344 347 353 355 361 362 365 366 367 368 372 388 390 393 397 401 407 413 414 425 428 430 435 437 441 447 448
457 462 463 469 470 471 472 476 483 487 515 546 555 558 570 579 583 587 593 594 596 609 613 617 621 629 637 657 658
701 717 724 763 768 774 776 779 780 787 805 812 815 820 824 833 847 852 866 875 883 889 895 907 928 931 932 933 934
936 937 943 945 947 948 949 951 953 954 957 963 965 967 980 981 983 988
"""
# mean error of AlexNet over the five severities of each corruption (Hendrycks and Dietterich, ICLR 2019)
ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
EXTRA = ("gaussian_blur", "speckle_noise", "saturate", "spatter")  # published beside the 15; mCE leaves them out
SEVERITIES = range(1, 6)


class Robustness(LabelledImages):
    """Test images of ImageNet classes; there is nothing to train on.

    Args:
        root: Folder of the class folders, or the folder that it lies in.
        cache: Resized images in RAM: ``none`` keeps none, because a test reads each image once; ``ram`` keeps all,
            ``auto`` those up to 2 GiB.
    """

    class_names = WNIDS
    num_classes = len(WNIDS)
    inside: ClassVar[tuple[str, ...]]  # names of the folder of class folders
    folders: ClassVar[dict[str, int]] = {wnid: label for label, wnid in enumerate(WNIDS)}  # and their classes

    def __init__(self, root: str, cache: Cache = "none", **kwargs: Any) -> None:
        super().__init__(cache=cache, **kwargs)
        self.root = root
        self.home = existing(root)

    @property
    @abstractmethod
    def size_of_test(self) -> int:
        """Published number of images."""

    @property
    def published_sizes(self) -> dict[str, int | None]:
        return {"test": self.size_of_test}

    def samples(self, split: Split) -> LabelledSamples | None:
        if split != "test":
            return None
        found = next((self.home / name for name in self.inside if (self.home / name).is_dir()), self.home)
        return class_folders(found, list(self.folders), list(self.folders.values()))


class Subset200(Robustness):
    """Test images of 200 of the classes.

    Args:
        class_mask: ``subset`` lets the classifier choose among the 200 classes alone, as the authors of the images and
            SSF do; ``full`` lets it choose among all 1,000, as NOAH does, which gives much lower numbers.
    """

    def __init__(self, root: str, class_mask: Literal["subset", "full"] = "subset", **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.class_mask = class_mask

    @property
    def class_subset(self) -> list[int] | None:
        """Numbers of the classes that a prediction may have; None for all."""
        return list(self.folders.values()) if self.class_mask == "subset" else None

    def description(self) -> dict[str, Any]:
        return super().description() | {"class_mask": self.class_mask}


class ImageNetA(Subset200):
    """ImageNet-A: photographs that a ResNet-50 classifies wrongly (Hendrycks et al., CVPR 2021, arXiv:1907.07174)."""

    inside = ("imagenet-a",)
    folders: ClassVar[dict[str, int]] = {WNIDS[label]: label for label in map(int, A.split())}
    size_of_test = 7_500


class ImageNetR(Subset200):
    """ImageNet-R: art, toys and other renditions (Hendrycks et al., ICCV 2021, arXiv:2006.16241)."""

    inside = ("imagenet-r",)
    folders: ClassVar[dict[str, int]] = {WNIDS[label]: label for label in map(int, R.split())}
    size_of_test = 30_000


class ImageNetV2(Robustness):
    """ImageNet-V2, matched frequency: a second test set (Recht et al., ICML 2019, arXiv:1902.10811)."""

    inside = ("imagenetv2-matched-frequency-format-val",)
    folders: ClassVar[dict[str, int]] = {str(label): label for label in range(len(WNIDS))}  # named by their number
    size_of_test = 10_000


class ImageNetSketch(Robustness):
    """ImageNet-Sketch: black and white drawings (Wang et al., NeurIPS 2019, arXiv:1905.13549)."""

    inside = ("images", "sketch", "imagenet-sketch")
    size_of_test = 50_889


class ImageNetC(Robustness):
    """ImageNet-C: 15 corruptions of the test images (Hendrycks and Dietterich, ICLR 2019, arXiv:1903.12261).

    Results are the accuracy of every corruption and severity, and ``test/mCE``: the error of a corruption divided by
    that of AlexNet, in percent, averaged over the 15.

    Args:
        root: Folder of ``<corruption>/<severity>/<wnid>/*.JPEG``, also with the archives' own folders (``noise/``,
            ``blur/``, ...) in between.
        extra: Also test the four extra corruptions, which do not count for mCE.
        resize: ``direct`` takes the images as they are, because they are centre crops already. SSF resizes and crops
            them once more: ``--data.resize center_crop --data.crop_pct 0.9``. ``square_crop`` squashes them to a larger
            square before the crop.
    """

    opens_all = False  # because there are millions of headers; a test names an unreadable image when it reads it
    size_of_test = 50_000

    def __init__(
        self,
        root: str,
        extra: bool = False,
        resize: Resize = "direct",
        **kwargs: Any,
    ) -> None:
        super().__init__(root, resize=resize, **kwargs)
        self.corruptions = [*ALEXNET, *(EXTRA if extra else ())]

    @property
    def test_names(self) -> list[str]:
        """Names of the test loaders, in their order."""
        return [f"{corruption}/{severity}" for corruption, severity in product(self.corruptions, SEVERITIES)]

    @property
    def published_sizes(self) -> dict[str, int | None]:
        return dict.fromkeys(self.test_names, self.size_of_test)

    def samples_of(self, name: str) -> LabelledSamples:
        return class_folders(self.folder(name), WNIDS)

    def folder(self, name: str) -> Path:
        """Folder of a corruption and severity."""
        found = next((path for path in [self.home / name, *self.home.glob(f"*/{name}")] if path.is_dir()), None)
        if found is None:
            raise FileNotFoundError(f"{self.home} has no folder {name}")
        return found

    def samples(self, split: Split) -> LabelledSamples | None:
        if split != "test":
            return None
        return Corrupted([self.folder(name) for name in self.test_names])

    def test_dataloader(self) -> list[DataLoader[Any]]:
        dataset = self.splits["test"]
        size, ranks = len(dataset) // len(self.test_names), self.trainer.world_size if self.trainer else 1
        parts = [Padded(Subset(dataset, range(i, i + size)), ranks) for i in range(0, len(dataset), size)]
        # otherwise the workers of a finished loader would live on beside those of the next
        return [self.loader(part, self.eval_batch_size, persistent_workers=False) for part in parts]

    def summary(self, accuracy: dict[str, float]) -> dict[str, float]:
        """``mCE`` (in percent) and the mean accuracy of each corruption, from the accuracies of the loaders by name."""
        means = {c: sum(accuracy[f"{c}/{s}"] for s in SEVERITIES) / len(SEVERITIES) for c in self.corruptions}
        errors = [(1 - means[corruption]) / alexnet for corruption, alexnet in ALEXNET.items()]
        return {"mCE": 100 * sum(errors) / len(errors), **means}


class Corrupted(LabelledSamples):
    """Images of equal names in several folders; their names are in memory once.

    Args:
        roots: Folders of all class folders.
    """

    def __init__(self, roots: list[Path]) -> None:
        self.roots = roots
        self.one = class_folders(roots[0], WNIDS)
        self.labels = self.one.labels.repeat(len(roots))
        for root in roots:
            for path in (self.one.paths[0], self.one.paths[-1]):
                if not (root / path).is_file():
                    raise FileNotFoundError(f"{root} has no {path}, which {roots[0]} has")

    def file(self, index: int) -> Path:
        """Path of an image."""
        return self.roots[index // len(self.one.paths)] / self.one.paths[index % len(self.one.paths)]

    def open(self, index: int) -> Image.Image:
        return open_image(self.file(index))

    def content(self, index: int) -> bytes:
        return regular(self.file(index)).read_bytes()

    def name(self, index: int) -> str:
        return str(self.file(index))

    def keep(self, indices: list[int]) -> Files:
        return Files(Path(), [self.name(i) for i in indices], self.labels[indices].tolist())
