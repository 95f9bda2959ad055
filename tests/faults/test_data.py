"""Data that no run can have (faults 6 to 11, 28 and 42 to 44 of the list, and their kind)."""

import csv
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from methods import METHODS
from tests.conftest import TINY_OPTIONS
from tests.faults.conftest import Refused
from tests.support.command_line import Answer, folders


def test_06_a_label_outside_the_classes(tiny: list[str], images: Path, refused: Refused, tmp_path: Path) -> None:
    import datasets

    content = (images / "train/rose/0.png").read_bytes()
    rows = {"image": [{"bytes": content, "path": None}] * 4, "label": [0, 1, None, 1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    (tmp_path / "table").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "table/train.parquet")
    refused(*tiny, "--data.root", tmp_path / "table", "--data.val_split=none", says=("row 2", "label -1"))


def test_07_data_that_are_half_there(
    model: list[str], base: list[str], refused: Refused, call: Callable[..., Answer], tmp_path: Path
) -> None:
    """A run names what is missing, and check_data prints a table of all that is there and missing."""
    data = ["--data", "VTAB", "--data.root", str(tmp_path)]
    trainer = [word for word in base if word.startswith("--trainer")]
    (tmp_path / "cifar").mkdir()
    refused("fit", *model, *trainer, *data, "--data.task=cifar", says="cifar")
    answer = call("check_data", *data)
    assert answer.code == 1
    assert "problems, listed above" in answer.err
    assert f"{tmp_path} has no folder svhn" in answer.out


def test_08_test_images_in_the_training_split(
    tiny: list[str], own_images: Path, refused: Refused, call: Callable[..., Answer], tmp_path: Path
) -> None:
    for number in range(3):
        shutil.copy(own_images / f"test/rose/{number}.png", own_images / f"train/tulip/x{number}.png")
    message = "train and test share 3 of 27 images: "
    refused(*tiny, "--test_after_fit=true", says=(message, "tulip/x0.png = ", "--data.allow_overlap true"))
    answer = call(*tiny, "--test_after_fit=true", "--data.allow_overlap=true", "--run_root", tmp_path / "runs")
    assert answer.code == 0
    assert f"note: {message}" in answer.out


def test_09_files_that_are_no_images(
    tiny: list[str], own_images: Path, refused: Refused, call: Callable[..., Answer], tmp_path: Path
) -> None:
    file = own_images / "train/rose/0.png"
    whole = file.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"text"):
        file.write_bytes(content)
        refused(*tiny, says=("1 of 24 images cannot be read", "rose/0.png", "--data.on_corrupt skip"))
    file.unlink()
    os.mkfifo(file)
    refused(*tiny, says=("rose/0.png", "no regular file"))
    refused(*tiny, "--data.on_corrupt=skip", says="more than --data.max_corrupt 1%")
    options = ("--data.on_corrupt=skip", "--data.max_corrupt=0.1", "--run_root", tmp_path / "runs")
    answer = call(*tiny, *options)
    assert answer.code == 0, answer.err
    assert "rose/0.png; left out" in answer.out


def test_10_odd_images(
    tiny: list[str], own_images: Path, refused: Refused, call: Callable[..., Answer], tmp_path: Path
) -> None:
    folder = own_images / "train/rose"
    for mode in ("L", "1", "LA", "RGBA", "P"):
        Image.new(mode, (5, 4)).save(folder / f"mode{mode}.png")
    Image.new("CMYK", (5, 4)).save(folder / "cmyk.jpg")
    Image.fromarray(np.full((4, 5), 0x80C0, np.uint16)).save(folder / "16bit.png")
    Image.new("RGB", (1, 1)).save(folder / "pixel.png")
    rotated = Image.Exif()
    rotated[0x0112] = 6
    Image.new("RGB", (5, 4)).save(folder / "rotated.jpg", exif=rotated)
    assert call(*tiny, "--run_root", tmp_path / "runs").code == 0
    Image.new("RGB", (20_000, 10)).save(folder / "long.png")
    refused(*tiny, says=("long.png", "20000 x 10 pixels"))


def test_11_too_few_images(tiny: list[str], own_images: Path, refused: Refused) -> None:
    refused(*tiny, "--data.batch_size=25", says="batch_size=25 is larger than the 24 training images")
    refused(*tiny, "--data.train_split=none", says="the data have no train split; found val, test")
    for name in ("rose", "tulip"):
        for split in ("train", "val", "test"):
            shutil.rmtree(own_images / split / name)
            (own_images / split / name).mkdir()
    refused(*tiny, says="num_classes=1: expected at least 2 classes")


@pytest.mark.parametrize(("factor", "message"), [(1e30, "holds NaN or infinity"), (0.0, "all scores are zero")])
def test_28_scores_that_choose_nothing(
    factor: float, message: str, tiny: list[str], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = METHODS["spt"].score_loss
    monkeypatch.setattr(METHODS["spt"], "score_loss", lambda self, batch: factor * loss(self, batch))
    options = [f"--model.{name}={value}" for name, value in TINY_OPTIONS["spt"].items()]
    refused(*("spt" if word == "ssf" else word for word in tiny), *options, says=(message, "blocks."))


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png"])
def test_42_a_list_that_leaves_its_folder(
    name: str, model: list[str], base: list[str], refused: Refused, tmp_path: Path
) -> None:
    (tmp_path / "vtab/cifar").mkdir(parents=True)
    for split in ("train800", "val200", "test"):
        (tmp_path / f"vtab/cifar/{split}.txt").write_text(f"{name} 0\n")
    data = ["--data", "VTAB", "--data.root", str(tmp_path / "vtab"), "--data.task=cifar"]
    trainer = [word for word in base if word.startswith("--trainer")]
    refused("fit", *model, *trainer, *data, says=(name, "lies outside"))


def test_43_other_classes_than_in_training(fitted: Path, base: list[str], own_images: Path, refused: Refused) -> None:
    for split in ("train", "val", "test"):
        (own_images / split / "daisy").rename(own_images / split / "zinnia")
    data = [*base, "--data.root", str(own_images)]
    for place in ("adapter", "checkpoints/best.ckpt"):
        refused("test", "--ckpt_path", fitted / place, *data, says=("daisy", "zinnia"))


def test_44_odd_paths(
    fitted: Path, base: list[str], own_images: Path, call: Callable[..., Answer], tmp_path: Path
) -> None:
    """A space, letters outside ASCII, a link, read-only files, and a class that a spreadsheet would run."""
    formula = '=HYPERLINK("x")'
    for split in ("train", "val", "test"):
        (own_images / split / "tulip").rename(own_images / split / formula)
    place = tmp_path / "Bilder für Łódź"
    place.symlink_to(own_images)
    for file in own_images.rglob("*.png"):
        file.chmod(0o400)
    options = ["--data.root", str(place), "--run_root", str(tmp_path / "läufe 1")]
    model = ["--method", "linear_probe", "--model.backbone", "test_vit", "--model.pretrained=false"]
    assert call("fit", *model, *base, *options).code == 0
    (adapter,) = tmp_path.glob("läufe 1/*/*/*/adapter")
    assert call("predict", "--ckpt_path", adapter, *base, *options).code == 0
    (predicted,) = [folder for folder in folders(tmp_path / "läufe 1") if folder.name.startswith("predict-")]
    with (predicted / "predictions.csv").open() as file:
        classes = {row["class"] for row in csv.DictReader(file)}
    assert classes <= {"daisy", "rose", f"'{formula}"}
