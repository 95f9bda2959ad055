"""Cache of decoded and resized images, for the epochs of a run or for all runs of a process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

from torch import Tensor
from torchvision.transforms import v2

from datamodules.items import Items
from datamodules.samples import ImageSamples

Cache = Literal["auto", "ram", "none"]
CACHE_LIMIT = 2 * 1024**3  # bytes of uint8 pixels of a split that ``cache: auto`` keeps in memory
shared: dict[str, Tensor] | None = None  # pixels of earlier splits by their digest; None while runs share nothing


class CachedImages(Items):
    """Items whose images are decoded and resized already, for targets that no resizing or flip changes.

    Args:
        samples: Samples as stored, whose targets are read at every access.
        pixels: uint8 pixels (N, C, H, W) of the samples.
        augment: Augmentation of pixels (C, H, W), or None.
    """

    in_memory: ClassVar[bool] = True

    def __init__(self, samples: ImageSamples, pixels: Tensor, augment: v2.Transform | None) -> None:
        self.samples, self.pixels, self.augment = samples, pixels, augment

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, target = self.pixels[index], self.samples.target(index)
        return image if self.augment is None else self.augment(image), target


@contextmanager
def shared_pixels() -> Iterator[None]:
    """Inside, all runs of the process share decoded images, up to ``CACHE_LIMIT``."""
    global shared
    shared = {}
    try:
        yield
    finally:
        shared = None


def share(
    samples: ImageSamples,
    digest: Callable[[ImageSamples], str],
    decode: Callable[[], tuple[ImageSamples, Tensor]],
) -> tuple[ImageSamples, Tensor]:
    """Samples that can be read and their pixels, from an earlier run of the process where there is one.

    Args:
        samples: Samples as stored.
        digest: Hash of samples with the settings of their pixels.
        decode: Function that decodes the samples and leaves out those that cannot be read.
    """
    if shared is None:
        return decode()
    try:
        key = digest(samples)
    except OSError:  # decoding gives the message, with the name of the sample
        key = ""
    if key in shared:
        return samples, shared[key]
    kept, pixels = decode()
    if kept is samples:  # otherwise later runs would not print which images were left out
        shared[key] = pixels
        while sum(tensor.nbytes for tensor in shared.values()) > CACHE_LIMIT:
            del shared[next(iter(shared))]
    return kept, pixels
