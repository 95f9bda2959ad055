"""What `train.py check_data` says about whole and damaged benchmarks."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules import VTAB
from tests.support.pictures import picture
from train import main

Check = Callable[..., tuple[int, str]]
LENGTHS = {"train800": 800, "val200": 200, "train800val200": 1000, "test": 711}


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dump of kitti whose lists name three images again and again, different ones in each split."""
    folder = tmp_path_factory.mktemp("vtab 1k") / "kitti"
    for split, length in LENGTHS.items():
        inside = {"val200": "val200", "test": "test"}.get(split, "train800")
        (folder / "images" / inside).mkdir(parents=True, exist_ok=True)
        for index in range(3):
            picture(index + 10 * len(inside), 32, 24).save(folder / f"images/{inside}/{index:06d}.jpg")
        lines = [f"images/{inside}/{index % 3:06d}.jpg {index % 4}\n" for index in range(length)]
        (folder / f"{split}.txt").write_text("".join(lines))
    return folder.parent


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "vtab"))


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Check:
    """``check("--data", "VTAB", ...)``: exit code and everything that was printed, in single spaces."""

    def run(*args: object) -> tuple[int, str]:
        code = 0
        try:
            main(["check_data", *map(str, args)])
        except SystemExit as stop:
            code = int(stop.code or 0)
        streams = capsys.readouterr()
        return code, re.sub(r"\s+", " ", streams.out + streams.err)

    return run


def test_whole_task(whole: Path, check: Check) -> None:
    code, text = check("--data", "VTAB", "--data.root", whole, "--data.task", "kitti")
    assert code == 0
    assert "│ kitti │ train800 │ 800 │ 800 │ 4 of 4 │ 0 to 3 │ 32 x 24 │ │" in text
    assert "│ kitti │ test │ 711 │ 711 │ 4 of 4 │ 0 to 3 │ 32 x 24 │ │" in text
    assert text.endswith("all there ")


def test_half_an_archive(whole: Path, check: Check) -> None:
    code, text = check("--data", "VTAB", "--data.root", whole)
    assert code == 1
    assert "│ svhn │ test │ │ 26,032 │ │ │ │ wrong │" in text
    assert f"- svhn train800, val200, train800val200, test: {whole} has no folder svhn" in text
    assert "error: 18 problems, listed above" in text
    assert sum(f"- {task} " in text for task in VTAB.tasks) == 18


def edit(file: Path, old: str, new: str) -> None:
    file.write_text(file.read_text().replace(old, new, 1))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing list": (lambda folder: (folder / "test.txt").unlink(), r"- kitti test: \S+/test\.txt is missing"),
    "line less": (
        lambda folder: edit(folder / "val200.txt", "images/val200/000001.jpg 1\n", ""),
        r"- kitti val200: \S+/val200\.txt: 199 images, expected 200",
    ),
    "test line less": (
        lambda folder: edit(folder / "test.txt", "images/test/000001.jpg 1\n", ""),
        r"- kitti test: 710 images, expected 711",
    ),
    "label": (
        lambda folder: edit(folder / "test.txt", "000001.jpg 1\n", "000001.jpg 4\n"),
        r"- kitti test: 1 labels outside 0 to 3, first 4 of \S+/test/000001\.jpg",
    ),
    "missing images": (
        lambda folder: (folder / "images/test/000001.jpg").unlink(),
        r"- kitti test: 237 of 711 images cannot be read, first \S+/test/000001\.jpg \(.*No such file",
    ),
    "half an image": (
        lambda folder: (folder / "images/test/000001.jpg").write_bytes(
            (folder / "images/test/000002.jpg").read_bytes()[:700]
        ),
        r"- kitti test: 237 of 711 images cannot be read, first \S+/test/000001\.jpg \(.*truncated",
    ),
    "leak": (
        lambda folder: shutil.copy(folder / "images/train800/000001.jpg", folder / "images/test/000002.jpg"),
        r"- kitti train800 and test share 1 of 3 images: \S+/train800/000001\.jpg = \S+/test/000002\.jpg",
    ),
    "validation images trained on": (
        lambda folder: shutil.copy(folder / "images/train800/000001.jpg", folder / "images/val200/000002.jpg"),
        r"- kitti train800 and val200 share 1 of 3 images",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault: str, root: Path, check: Check) -> None:
    harm, message = FAULTS[fault]
    harm(root / "kitti")
    code, text = check("--data", "VTAB", "--data.root", root, "--data.task", "kitti")
    assert code == 1
    assert re.search(message, text), text


def test_a_few_equal_images_are_told(root: Path, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of the public sets hold equal images by nature."""
    monkeypatch.setattr("datamodules.overlap.LEAK", 0.4)
    shutil.copy(root / "kitti/images/train800/000001.jpg", root / "kitti/images/test/000002.jpg")
    code, text = check("--data", "VTAB", "--data.root", root, "--data.task", "kitti")
    assert code == 0
    assert "note: train800 and test share 1 of 3 images" in text


def test_long_lists_are_sampled(whole: Path, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("commands.check_data.MOST", 100)
    monkeypatch.setattr("datamodules.files.Files.content", lambda self, index: opened.append(index) or b"")
    code, text = check("--data", "VTAB", "--data.root", whole, "--data.task", "kitti")
    assert code == 1
    assert len(opened) == 100 + 100 + 100 + 89
    assert "test: 89 of 89 images cannot be read" in text


def test_images_of_one_s_own(images: Path, check: Check) -> None:
    code, text = check("--data", "ImageDataset", "--data.root", images)
    assert code == 0
    assert "│ train │ 24 │ │ 3 of 3 │ 0 to 2 │ 36 x 40 │ │" in text


def test_no_such_folder(check: Check) -> None:
    code, text = check("--data", "VTAB", "--data.root", "nowhere")
    assert code == 1
    assert "error: data.root='nowhere': no such folder" in text
