"""Checks of images with objects before a run."""

from collections import Counter

from tqdm import tqdm

from datamodules.image_module import DECODED
from datamodules.objects import ObjectSamples, Size, flaw, learnable
from datamodules.samples import leave_out

SWAPPED = 5  # orientations of EXIF from this number on exchange height and width


def usable(split: str, samples: ObjectSamples, masks: bool, most_corrupt: float | None) -> ObjectSamples:
    """Samples whose image and objects fit; of the training split, those with an object to learn from.

    Args:
        split: Name of the split.
        samples: All samples.
        masks: Whether masks are read.
        most_corrupt: Largest share of the samples that may be left out because they do not fit; None to refuse any.

    Raises:
        ValueError: If too many do not fit, with the first of them, or no object is left.
    """
    broken: dict[int, str] = {}
    counts, learned = Counter[str](), list[int]()  # numbers of objects to learn from, of the images that fit
    for index in tqdm(range(len(samples)), desc=f"checking {split}", leave=False, disable=None):
        try:
            size = upright_size(samples, index, decode=len(samples) <= DECODED)
            objects = samples.target(index)
            reason = flaw(objects, size, masks)
            if reason:
                raise ValueError(reason)
            learned.append(len(learnable(objects, size, counts).labels))
            counts["objects"] += len(objects.labels)
            counts["crowd images"] += bool(len(objects.labels)) and bool(objects.crowd.all())
        except (OSError, ValueError) as error:
            broken[index] = str(error)
    kept = leave_out(split, samples, broken, most_corrupt)
    assert isinstance(kept, ObjectSamples)
    some = [number for number, count in enumerate(learned) if count]
    if not some:
        raise ValueError(
            f"{split}: none of the {len(kept)} images has an object that is no crowd and more than 1 pixel wide and "
            "high; there is nothing to learn or to evaluate"
        )
    for note in notes(counts, len(kept), len(kept) - len(some), split == "train"):
        print(f"note: {split}: {note}")
    return kept.keep(some) if split == "train" and len(some) < len(kept) else kept


def upright_size(samples: ObjectSamples, index: int, decode: bool) -> Size:
    """Height and width of an upright image.

    Args:
        samples: The samples.
        index: Number of the image.
        decode: Whether all of the file is read.

    Raises:
        OSError: If the image cannot be read.
        ValueError: If its annotations have another size.
    """
    with samples.open(index) as image:
        swapped = image.getexif().get(0x0112, 1) >= SWAPPED
        width, height = image.size[::-1] if swapped else image.size
        if decode:
            image.draft("RGB", (1, 1))  # of a JPEG, an eighth of the pixels, and still all of the file
            image.load()
    known = samples.size(index)
    if known not in (None, (height, width)):
        raise ValueError(f"{width} x {height} pixels, and its annotations are for {known[1]} x {known[0]}")
    return height, width


def notes(counts: Counter[str], images: int, without: int, train: bool) -> list[str]:
    """Lines about boxes and images of a split that are cut or left out."""
    found, total = [], counts["objects"]
    if train and counts["cut"]:
        found.append(f"{counts['cut']} of {total} boxes reach beyond their image; cut at its border")
    if train and counts["thin"]:
        found.append(f"{counts['thin']} of {total} boxes are at most 1 pixel wide or high; left out")
    if train and counts["crowds"]:
        found.append(f"{counts['crowds']} of {total} boxes are crowds; left out")
    if without:
        crowds = f" ({counts['crowd images']} have crowds alone)" if counts["crowd images"] else ""
        end = "left out" if train else "any box there is a mistake"
        found.append(f"{without} of {images} images have no object to learn from{crowds}; {end}")
    return found
