"""ImageNet-1k from its class folders (Russakovsky et al., IJCV 2015, arXiv:1409.0575)."""

from typing import Any

from timm.data import ImageNetInfo

from datamodules.benchmark import TrainTest
from datamodules.files import Files, class_folders
from datamodules.pixels import Cache

WNIDS: list[str] = ImageNetInfo().label_names()  # class i is the i-th of the sorted 1,000


class ImageNet(TrainTest):
    """ImageNet-1k: ``train/<wnid>/*.JPEG`` and ``val/<wnid>/*.JPEG``. Papers test on the latter.

    Args:
        root: Folder of ``train/`` and ``val/``.
        cache: Resized images in RAM: ``none`` decodes each image in every epoch, because the data are too large to
            keep; ``ram`` keeps all, ``auto`` those of a split up to 2 GiB.
    """

    class_names = WNIDS
    num_classes = len(WNIDS)
    opens_all = False  # because a million headers take minutes; a run names an unreadable image when it reads it

    def __init__(self, root: str, cache: Cache = "none", **kwargs: Any) -> None:
        super().__init__(root, cache=cache, **kwargs)

    @property
    def published_sizes(self) -> dict[str, int | None]:
        return {"train": 1_281_167, "test": 50_000}

    def samples_of(self, name: str) -> Files:
        return class_folders(self.home / ("val" if name == "test" else name), WNIDS)
