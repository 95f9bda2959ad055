"""HMDB51 (Kuehne et al., ICCV 2011)."""

from typing import ClassVar

from datamodules.published_clips import PublishedClips


class HMDB51(PublishedClips):
    """HMDB51, 51 classes; a split has 70 training and 30 test videos of each."""

    count = 51
    sizes: ClassVar[dict[str, int]] = {"train": 51 * 70, "test": 51 * 30}
