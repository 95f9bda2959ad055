"""Folders and lists of micro-VTAB, and their images as the datamodule reads them."""

from pathlib import Path

import pytest
from PIL import Image

from datamodules import ImageDataset, MicroVTAB
from datamodules.micro.build import build
from datamodules.micro.shapes import SIZE, draw

TASKS = {"digits": 20, "shapes_loc": 20}  # two of them, with few test images, are enough to see the form


def cut(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MicroVTAB, "tasks", {task: MicroVTAB.tasks[task] for task in TASKS})
    patch.setattr(MicroVTAB, "test_sizes", TASKS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("micro") / "deep/micro vtab"
    with pytest.MonkeyPatch.context() as patch:
        cut(patch)
        build(folder)
    return folder


def test_layout(root: Path) -> None:
    assert [path.name for path in root.parent.iterdir()] == [root.name], "nothing temporary is left"
    assert {path.name for path in root.iterdir()} == set(TASKS)
    for task in TASKS:
        lists = {path.stem: path.read_text() for path in (root / task).glob("*.txt")}
        lengths = {"train800": 800, "val200": 200, "train800val200": 1000, "test": 20}
        assert {name: len(text.splitlines()) for name, text in lists.items()} == lengths
        assert lists["train800val200"] == lists["train800"] + lists["val200"]
    assert lists["test"].startswith("images/test/000000.png 0\nimages/test/000001.png 1\n")


def test_pixels(root: Path) -> None:
    module = MicroVTAB(str(root), "shapes_loc")
    for split, name in {"train": "train800", "val": "val200", "test": "test"}.items():
        samples = module.samples(split)  # type: ignore[arg-type]
        assert samples is not None
        for index in (0, 17):
            image, label = draw("shapes_loc", name, index)
            with samples.open(index) as written:
                assert written.tobytes() == image.tobytes()
            assert samples.labels[index] == label
    with Image.open(root / "digits/images/train800/000000.png") as first:
        assert (first.mode, first.size) == ("RGB", (SIZE, SIZE))


@pytest.mark.parametrize("task", ["fashion_mnist", "digits"])
def test_shipped_images_are_enough(task: str) -> None:
    shipped = ImageDataset(f"assets/{task}_1k", "train800", "val200", "test")
    assert shipped.num_classes == MicroVTAB.tasks[task]
    lengths = [len(shipped.samples(split).labels) for split in ("train", "val")]  # type: ignore[union-attr]
    assert lengths == [800, 200]
    assert len(shipped.samples("test").labels) >= MicroVTAB.test_sizes[task]  # type: ignore[union-attr]


def test_existing_folder_is_kept(root: Path) -> None:
    with pytest.raises(FileExistsError, match=r"micro vtab' exists; remove it, or name another folder"):
        build(root)
    assert {path.name for path in root.iterdir()} == set(TASKS)
