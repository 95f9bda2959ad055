"""Something-Something V2 (Goyal et al., ICCV 2017, arXiv:1706.04261)."""

from typing import ClassVar

from datamodules.published_clips import PublishedClips


class SSv2(PublishedClips):
    """Something-Something V2, 174 classes. Some of them tell left from right: leave ``flip`` off."""

    count = 174
    sizes: ClassVar[dict[str, int]] = {"train": 168_913, "test": 24_777}
