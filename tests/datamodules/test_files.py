"""Lists and class folders of image files."""

from pathlib import Path

import pytest

from datamodules.files import class_folders, existing, listed, read_list, read_text
from tests.support.pictures import picture


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three images of two classes, one of which has a space in its name."""
    for index, path in enumerate(("a cat/1 b.png", "a cat/2.PNG", "dog/1.png")):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        picture(index).save(tmp_path / path)
    (tmp_path / "dog/notes.txt").write_text("no image")
    return tmp_path


def test_list_of_paths_with_spaces(root: Path) -> None:
    (root / "list.txt").write_text("\ufeffa cat/1 b.png 0\n\n  dog/1.png -1  \n")
    samples = read_list(root / "list.txt", root)
    assert len(samples) == 2
    assert samples.labels.tolist() == [0, -1]
    assert samples.name(0) == str(root / "a cat/1 b.png")
    assert samples.content(1) == (root / "dog/1.png").read_bytes()
    assert samples.stored(1) == f"-1 {len(samples.content(1))} ".encode() + samples.content(1)
    image, target = samples[0]
    with image:
        assert (image.size, target) == ((24, 20), 0)
    kept = samples.keep([1])
    assert (kept.name(0), kept.target(0)) == (samples.name(1), -1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "lists no images"),
        ([("../secret.png", 0)], r"names '\.\./secret\.png', which lies outside"),
        ([("C:\\secret.png", 0)], "which lies outside"),
        ([("a cat/1 b.png", 0), ("dog/7.png", 1)], r"names dog/7\.png, but there is no such file"),
    ],
)
def test_rows_that_are_refused(rows: list[tuple[str, int]], message: str, root: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        listed(root / "list.txt", root, rows)


def test_lists_that_cannot_be_read(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"list\.txt is missing"):
        read_text(root / "list.txt")
    (root / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is no UTF-8 text"):
        read_text(root / "list.txt")
    (root / "list.txt").write_text("a cat/1 b.png 0\ndog/1.png\n")
    with pytest.raises(ValueError, match=r"line 2: expected a path, a space and a class number, found 'dog/1\.png'"):
        read_list(root / "list.txt", root)


def test_class_folders(root: Path) -> None:
    samples = class_folders(root, ["dog", "a cat"])
    assert [Path(path).as_posix() for path in samples.paths] == ["dog/1.png", "a cat/1 b.png", "a cat/2.PNG"]
    assert samples.labels.tolist() == [0, 1, 1]
    assert class_folders(root, ["dog", "a cat"], [7, 3]).labels.tolist() == [7, 3, 3]
    (root / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="2 of 3 class folders are missing or empty, first empty"):
        class_folders(root, ["empty", "dog", "bird"])
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        class_folders(root / "nowhere", ["dog"])


def test_existing_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root))
    assert existing("~/dog") == root / "dog"
    with pytest.raises(FileNotFoundError, match=r"data\.root='nowhere': no such folder"):
        existing("nowhere")
