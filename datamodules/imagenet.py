"""ImageNet-1k from its class folders (Russakovsky et al., IJCV 2015, arXiv:1409.0575)."""

from typing import Any, Literal

from timm.data import ImageNetInfo

from datamodules.benchmark import TrainTest
from datamodules.files import Files, class_folders
from datamodules.samples import Samples

WNIDS: list[str] = ImageNetInfo().label_names()  # class i is the i-th of the sorted 1,000


class ImageNet(TrainTest):
    """ImageNet-1k: ``train/<wnid>/*.JPEG`` and ``val/<wnid>/*.JPEG``. The latter are what papers test on.

    Args:
        cache: Keep resized images in RAM; the data are too large for that.
    """

    class_names = WNIDS
    num_classes = len(WNIDS)

    def __init__(self, root: str, cache: Literal["auto", "ram", "none"] = "none", **kwargs: Any) -> None:
        super().__init__(root, cache=cache, **kwargs)

    @property
    def expected(self) -> dict[str, int | None]:
        return {"train": 1_281_167, "test": 50_000}

    def samples_of(self, name: str) -> Files:
        return class_folders(self.home / ("val" if name == "test" else name), WNIDS)

    def check(self, split: str, samples: Samples) -> Samples:
        return samples  # a million headers would take minutes; an unreadable image is named when it comes up
