"""The five fine-grained sets from tiny trees: lists of three images a class, over few files."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from datamodules import FGVC
from datamodules.fgvc import FOLDERS
from tests.datamodules.test_vtab import ready
from tests.support.pictures import INPUT, picture


def write_lists(folder: Path, ids: list[int], inside: str) -> None:
    """Lists of VPT of one image a class and split; the images are links to three files with spaces in their names."""
    for split in ("train", "val", "test"):
        rows = {}
        for number in ids:
            name = f"{number:03d}.some class/{split} {number}.jpg"
            path = folder / inside / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if number == ids[0]:
                picture(len(split), 32, 32).save(path)
            else:
                path.symlink_to(folder / inside / f"{ids[0]:03d}.some class/{split} {ids[0]}.jpg")
            rows[name] = number
        (folder / f"{split}.json").write_text(json.dumps(rows))


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """NABirds, whose class numbers have gaps."""
    write_lists(tmp_path / "fine grained/nabirds", [2 * number + 7 for number in range(555)][::-1], "images")
    return tmp_path / "fine grained"


def test_sparse_numbers_become_ranks(birds: Path) -> None:
    samples = FGVC(str(birds), "nabirds").samples_of("test")
    assert sorted(samples.labels.tolist()) == list(range(555))
    for index in (0, 100, 554):
        number = int(samples.paths[index].partition(".")[0])
        assert int(samples.labels[index]) == (number - 7) / 2


def test_tune_and_final(birds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tune, final = (ready(FGVC(str(birds), "nabirds", split=split)) for split in ("tune", "final"))  # type: ignore[arg-type]
    assert {split: len(data) for split, data in tune.splits.items()} == {"train": 555, "val": 555}
    assert {split: len(data) for split, data in final.splits.items()} == {"train": 1110}
    names = [final.samples("train").name(index) for index in (0, 1109)]  # type: ignore[union-attr]
    assert ["train " in names[0], "val " in names[1]] == [True, True]
    assert final.num_classes == 555
    assert "train.json: 555 images, 21,536 in papers" in capsys.readouterr().out


@pytest.mark.parametrize("task", FOLDERS)
def test_folders_of_the_sets(task: str, tmp_path: Path) -> None:
    names, inside = FOLDERS[task]
    write_lists(tmp_path / names[-1], list(range(1, FGVC.tasks[task] + 1)), inside)
    module = FGVC(str(tmp_path), task)
    assert module.samples_of("train").labels.tolist() == list(range(FGVC.tasks[task]))
    assert torch.equal(FGVC(str(tmp_path / names[-1]), task).samples_of("val").labels, module.samples_of("val").labels)


def test_no_such_set(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder cub or CUB_200_2011 or CUB-200-2011, and no train\.json"):
        ready(FGVC(str(tmp_path), "cub"))
    with pytest.raises(ValueError, match=r"unknown task 'birds'; nearest: nabirds"):
        FGVC(str(tmp_path), "birds")


def change(split: str, edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        rows = json.loads((folder / f"{split}.json").read_text())
        edited = edit(rows)
        (folder / f"{split}.json").write_text(json.dumps(rows if edited is None else edited))

    return harm


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing list": (lambda folder: (folder / "val.json").unlink(), r"val\.json is missing"),
    "class less": (change("train", lambda rows: rows.popitem() and None), "train.json has 554 classes, expected 555"),
    "class of no training image": (change("val", lambda rows: rows.update({"a.jpg": 8})), "val.json has the class 8,"),
    "upwards": (change("val", lambda rows: {"../a.jpg": 7}), r"'\.\./a\.jpg', which lies outside"),
    "no numbers": (change("val", lambda rows: {"a.jpg": "7"}), "expected one object of image paths and class numbers"),
    "a list": (change("val", lambda rows: list(rows)), "expected one object of image paths and class numbers"),
    "no image": (change("val", lambda rows: {"a.jpg": 7}), r"val\.json names a\.jpg, but there is no such file"),
    "empty": (change("val", lambda rows: {}), "lists no images"),
    "half": (lambda folder: (folder / "val.json").write_text('{"a.jpg": 7,'), "is no readable JSON"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_stop_the_run(fault: str, birds: Path) -> None:
    harm, message = FAULTS[fault]
    harm(birds / "nabirds")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ready(FGVC(str(birds), "nabirds"))


@pytest.fixture
def cars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first archive of Cars, with a reader of .mat files that knows its two."""
    rows = [{"fname": f"{index:05d}.jpg", "class": index % 196 + 1, "bbox_x1": 3} for index in range(8144)]
    content = {"cars_train_annos.mat": rows, "cars_test_annos_withlabels.mat": rows[:300]}
    folder = tmp_path / "stanford_cars"
    for name in ("cars_train", "cars_test", "devkit"):
        (folder / name).mkdir(parents=True)
    for name in content:
        (folder / "devkit" / name).touch()
    for name, count in {"cars_train": 8144, "cars_test": 300}.items():
        picture(1, 32, 32).save(folder / name / "00000.jpg")
        for index in range(1, count):
            (folder / name / f"{index:05d}.jpg").symlink_to("00000.jpg")
    reader = ModuleType("scipy.io")
    reader.loadmat = lambda file, squeeze_me: {"annotations": content[Path(file).name]}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "scipy", ModuleType("scipy"))
    monkeypatch.setitem(sys.modules, "scipy.io", reader)
    return tmp_path


def test_first_cars_archive_has_its_own_lists(cars: Path) -> None:
    write_lists(cars / "stanford_cars", list(range(1, 197)), ".")  # lists that are for other images
    module = FGVC(str(cars), "cars")
    module.configure(INPUT)
    assert module.description()["source"] == "official"
    parts = {name: module.samples_of(name) for name in module.published_sizes}
    assert {name: len(part.labels) for name, part in parts.items()} == {
        "train": 7_329,
        "val": 815,
        "trainval": 8_144,
        "test": 300,
    }
    assert sorted(parts["train"].paths + parts["val"].paths) == sorted(parts["trainval"].paths)
    assert parts["test"].name(2).endswith("cars_test/00002.jpg")
    assert int(parts["test"].labels[2]) == 2
    assert module.samples_of("val").paths == parts["val"].paths
    (cars / "stanford_cars/car_ims").mkdir()
    assert FGVC(str(cars), "cars").samples_of("test").name(0).endswith(".some class/test 1.jpg")


def test_mat_files_need_scipy(cars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ValueError, match=r"cars_train_annos\.mat needs scipy: pip install scipy"):
        FGVC(str(cars), "cars").samples_of("train")
    (cars / "stanford_cars/devkit/cars_train_annos.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"cars_train_annos\.mat is missing"):
        FGVC(str(cars), "cars").samples_of("train")
