"""ImageNet from a tree of one small image a class."""

from pathlib import Path

import pytest

from datamodules import ImageNet
from datamodules.imagenet import WNIDS
from tests.datamodules.test_vtab import ready
from tests.support.pictures import picture


def fill(folder: Path, names: list[str], file: str = "a b.JPEG") -> None:
    """A link to one image in each class folder."""
    source = folder.parent / f"{folder.name}.png"
    folder.mkdir(parents=True, exist_ok=True)
    picture(len(folder.name), 32, 32).save(source)
    for name in names:
        (folder / name).mkdir()
        (folder / name / file).symlink_to(source)


def test_classes_are_the_sorted_wnids() -> None:
    assert sorted(WNIDS) == WNIDS
    assert (len(WNIDS), WNIDS[0], WNIDS[-1]) == (1000, "n01440764", "n15075141")


def test_imagenet(tmp_path: Path) -> None:
    fill(tmp_path / "train", WNIDS)
    fill(tmp_path / "val", WNIDS)
    module = ready(ImageNet(str(tmp_path), num_workers=0))
    assert list(module.splits) == ["train"]
    assert not module.validates
    assert module.kept_epoch == "last epoch"
    assert module.samples("train").labels.tolist() == list(range(1000))  # type: ignore[union-attr]
    assert "/val/" in module.samples("test").name(0)  # type: ignore[union-attr]
    assert module.splits["train"][5][1] == 5
    best = ImageNet(str(tmp_path), report_best_test=True)
    assert best.kept_epoch == "best test epoch"
    assert best.samples("val").name(3) == best.samples("test").name(3)  # type: ignore[union-attr]
    (tmp_path / "train" / WNIDS[7] / "a b.JPEG").unlink()
    with pytest.raises(FileNotFoundError, match=f"1 of 1000 class folders are missing or empty, first {WNIDS[7]}"):
        ready(ImageNet(str(tmp_path)))
    with pytest.raises(FileNotFoundError, match=r"nowhere': no such folder"):
        ImageNet("nowhere")
