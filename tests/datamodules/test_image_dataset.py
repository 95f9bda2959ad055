"""Every form of input, found, checked and labelled."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from datamodules import ImageDataset


@pytest.fixture(autouse=True)
def _quiet() -> None:
    datasets.disable_progress_bars()


def pixels(value: int) -> Image.Image:
    return Image.fromarray(np.full((6, 5, 3), value, np.uint8))


def class_folders(root: Path, classes: dict[str, int] | tuple[str, ...], count: int = 4) -> Path:
    """``root/<class>/<number>.png``; image values tell class and number."""
    for index, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(classes[name] if isinstance(classes, dict) else count):
            pixels(25 * index + number).save(root / name / f"{number}.png")
    return root


def table(labels: list[Any], feature: Any = None, image: str = "image", label: str = "label") -> datasets.Dataset:
    """A dataset whose image values are its row numbers."""
    rows = []
    for index in range(len(labels)):
        buffer = io.BytesIO()
        pixels(index).save(buffer, format="PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    data = datasets.Dataset.from_dict({label: labels})
    if feature is not None:
        data = data.cast_column(label, feature)
    images = datasets.Dataset.from_dict({image: rows}, features=datasets.Features({image: datasets.Image()}))
    return datasets.concatenate_datasets([images, data], axis=1)


ABC = datasets.ClassLabel(names=["a", "b", "c"])


def contents(module: ImageDataset) -> dict[str, list[tuple[int, str]]]:
    """(pixel value, class name) of every sample of every split."""
    found = {}
    for split in module.tables:
        samples = module.samples(split)  # type: ignore[arg-type]
        assert samples is not None
        values = [np.asarray(samples.open(index)).flat[0] for index in range(len(samples.labels))]
        found[split] = [
            (int(value), module.class_names[label])
            for value, label in zip(values, samples.labels.tolist(), strict=True)
        ]
    return found


def message(root: Any, **options: Any) -> str:
    """Of the refusal of a root."""
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        _ = ImageDataset(root=str(root), **options).tables
    return str(error.value)


# class folders


def test_class_folders_below_splits(tmp_path: Path) -> None:
    for split, count in {"train": 3, "val": 2, "test": 1}.items():
        class_folders(tmp_path / split, ("rose", "daisy"), count)
    found = contents(ImageDataset(root=str(tmp_path)))
    assert found["train"] == [(25, "daisy"), (26, "daisy"), (27, "daisy"), (0, "rose"), (1, "rose"), (2, "rose")]
    assert found["val"] == [(25, "daisy"), (26, "daisy"), (0, "rose"), (1, "rose")]
    assert found["test"] == [(25, "daisy"), (0, "rose")]


def test_a_split_may_lack_classes(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", ("a", "b", "c"))
    class_folders(tmp_path / "test", ("c",))
    module = ImageDataset(root=str(tmp_path))
    assert module.class_names == ["a", "b", "c"]
    assert {name for _, name in contents(module)["test"]} == {"c"}


def test_class_folders_without_images_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Such as photographs in a format that is not read."""
    class_folders(tmp_path / "train", ("cat", "dog"))
    (tmp_path / "train/cow").mkdir()
    (tmp_path / "train/cow/1.heic").write_bytes(b"")
    with caplog.at_level("INFO", "lightning.pytorch"):
        assert ImageDataset(str(tmp_path)).class_names == ["cat", "dog"]
    assert f"1 class folders hold no image, first {tmp_path / 'train/cow'}; read are" in caplog.text


def test_only_class_folders(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 20, "b": 10, "c": 2, "alone": 1})
    found = contents(ImageDataset(root=str(tmp_path), val_fraction=0.2))
    assert set(found) == {"train", "val"}
    assert sorted(found["train"] + found["val"]) == sorted(
        [(number, "a") for number in range(20)]
        + [(25 + number, "b") for number in range(10)]
        + [(50 + number, "c") for number in range(2)]
        + [(75, "alone")]
    )
    held = [name for _, name in found["val"]]
    assert [held.count(name) for name in ("a", "b", "c", "alone")] == [4, 2, 1, 0]
    shutil.copytree(tmp_path, copy := tmp_path.with_name("copy"))
    assert contents(ImageDataset(root=str(copy), val_fraction=0.2)) == found, "other images are held out elsewhere"


def test_fewer_held_out_than_classes(tmp_path: Path) -> None:
    class_folders(tmp_path, tuple("abcdefghij"), 4)
    found = contents(ImageDataset(root=str(tmp_path)))
    assert sorted(name for _, name in found["val"]) == list("abcdefghij")


def test_no_validation_on_request(tmp_path: Path) -> None:
    class_folders(tmp_path, ("a", "b"))
    module = ImageDataset(root=str(tmp_path), val_split="none")
    assert set(module.tables) == {"train"}
    assert not module.validates


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("training", "validation", "testing"), ("Train", "valid", "eval"), ("TRAIN", "dev", "Test")],
)
def test_split_aliases(train: str, val: str, test: str, tmp_path: Path) -> None:
    for count, split in enumerate((train, val, test), start=1):
        class_folders(tmp_path / split, ("a", "b"), count)
    lengths = {split: len(rows) for split, rows in ImageDataset(root=str(tmp_path)).tables.items()}
    assert lengths == {"train": 2, "val": 4, "test": 6}


def test_splits_of_other_names(tmp_path: Path) -> None:
    for count, split in enumerate(("train800", "val200", "final"), start=1):
        class_folders(tmp_path / split, ("a", "b"), count)
    names: dict[str, Any] = {"train_split": "train800", "val_split": "val200", "test_split": "final"}
    lengths = {split: len(rows) for split, rows in ImageDataset(root=str(tmp_path), **names).tables.items()}
    assert lengths == {"train": 2, "val": 4, "test": 6}
    names["val_split"] = "val300"
    text = message(tmp_path, **names)
    assert "data.val_split='val300'" in text
    assert "train800" in text


def test_a_class_name_is_no_split(tmp_path: Path) -> None:
    """``crash test`` and ``train`` are classes; the reader of datasets takes them for splits."""
    for split in ("train", "val"):
        class_folders(tmp_path / "a" / split, ("bike", "crash test"))
    assert {split: len(rows) for split, rows in ImageDataset(root=str(tmp_path / "a")).tables.items()} == {
        "train": 8,
        "val": 8,
    }
    class_folders(tmp_path / "b", ("bus", "train"))
    assert ImageDataset(root=str(tmp_path / "b")).class_names == ["bus", "train"]
    class_folders(tmp_path / "c", ("a", "b"))
    for number in range(4):
        (tmp_path / "c/a" / f"{number}.png").rename(tmp_path / "c/a" / f"test_{number}.png")
    assert set(ImageDataset(root=str(tmp_path / "c")).tables) == {"train", "val"}


def test_odd_paths_and_links(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "source", ("猫", "chien noir"))
    root = tmp_path / "ünï côdé [1] *x"
    (root / "train").mkdir(parents=True)
    for folder in source.iterdir():
        (root / "train" / folder.name).symlink_to(folder)
    (root / "test").symlink_to(source)
    (root / "val/猫").mkdir(parents=True)
    (root / "val/猫/linked file.png").symlink_to(source / "猫/0.png")
    (tmp_path / "link").symlink_to(root)
    for path in (root, tmp_path / "link"):
        found = contents(ImageDataset(root=str(path)))
        assert sorted(found["train"]) == sorted(found["test"])
        assert {name for _, name in found["train"]} == {"猫", "chien noir"}
        assert len(found["train"]) == 8
        assert found["val"] == [(0, "猫")]


def test_hidden_files_and_other_files_are_no_images(tmp_path: Path) -> None:
    class_folders(tmp_path / ".cache/train", ("a", "b"), 2)
    for odd in (".ipynb_checkpoints", "a/.ipynb_checkpoints", "__MACOSX"):
        class_folders(tmp_path / ".cache/train" / odd, ("a",), 3)
    (tmp_path / ".cache/train/a/._0.png").write_bytes(b"")
    (tmp_path / ".cache/train/a/notes.txt").write_text("")
    (tmp_path / ".cache/train/empty").mkdir()
    module = ImageDataset(root=str(tmp_path / ".cache"), val_split="none")
    assert module.class_names == ["a", "b"]
    assert len(module.tables["train"]) == 4


def test_nested_folders_belong_to_their_class(tmp_path: Path) -> None:
    class_folders(tmp_path / "train" / "a", ("left", "right"), 2)
    class_folders(tmp_path / "train", ("b",), 2)
    module = ImageDataset(root=str(tmp_path))
    assert module.class_names == ["a", "b"]


def test_labels_in_a_table_beside_the_images(tmp_path: Path) -> None:
    for number in range(4):
        pixels(number).save(tmp_path / f"{number}.png")
    rows = [{"file_name": f"{number}.png", "label": "dog" if number % 2 else "cat"} for number in range(4)]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = contents(ImageDataset(root=str(tmp_path), val_split="none"))
    assert sorted(found["train"]) == [(0, "cat"), (1, "dog"), (2, "cat"), (3, "dog")]


# parquet and saved datasets


@pytest.mark.parametrize("folder", ["", "data", "a [1] b"])
def test_parquet(folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    table([0, 1, 2, 0], ABC).to_parquet(tmp_path / folder / "train-00000-of-00002.parquet")
    table([1, 1], ABC).to_parquet(tmp_path / folder / "train-00001-of-00002-0a1b2c3d.parquet")
    table([2], ABC).to_parquet(tmp_path / folder / "validation.parquet")
    table([1, 0], ABC).to_parquet(tmp_path / folder / "test.parquet")
    root = tmp_path if folder == "data" else tmp_path / folder
    assert contents(ImageDataset(root=str(root))) == {
        "train": [(0, "a"), (1, "b"), (2, "c"), (3, "a"), (0, "b"), (1, "b")],
        "val": [(0, "c")],
        "test": [(0, "b"), (1, "a")],
    }


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_damaged_parquet(share: float, tmp_path: Path) -> None:
    table([0, 1], ABC).to_parquet(tmp_path / "train.parquet")
    whole = (tmp_path / "train.parquet").read_bytes()
    (tmp_path / "train.parquet").write_bytes(whole[: int(len(whole) * share)])
    assert f"train.parquet ({int(len(whole) * share)} bytes) is no readable parquet file" in message(tmp_path)


def test_parquet_without_rows(tmp_path: Path) -> None:
    table([0, 1], ABC).to_parquet(tmp_path / "train.parquet")
    table([0], ABC).select([]).to_parquet(tmp_path / "test.parquet")
    assert "test.parquet holds no rows" in message(tmp_path)


def test_save_to_disk(tmp_path: Path) -> None:
    splits = datasets.DatasetDict({"train": table([0, 1], ABC), "dev": table([2], ABC), "test": table([1], ABC)})
    splits.save_to_disk(str(tmp_path / "dict"))
    expected = {"train": [(0, "a"), (1, "b")], "val": [(0, "c")], "test": [(0, "b")]}
    assert contents(ImageDataset(root=str(tmp_path / "dict"))) == expected
    splits["train"].save_to_disk(str(tmp_path / "one"))
    assert contents(ImageDataset(root=str(tmp_path / "one"), val_split="none")) == {"train": expected["train"]}


def test_several_splits_and_none_is_for_training(tmp_path: Path) -> None:
    for name in ("first", "second"):
        table([0, 1], ABC).to_parquet(tmp_path / f"{name}.parquet")
    text = message(tmp_path)
    assert "found first, second. Pass --data.train_split NAME" in text
    assert "train" in ImageDataset(root=str(tmp_path), train_split="second").tables


# labels


def test_integer_labels(tmp_path: Path) -> None:
    table([3, 1, 1, 0]).to_parquet(tmp_path / "train.parquet")
    table([4, 0]).to_parquet(tmp_path / "test.parquet")
    module = ImageDataset(root=str(tmp_path), val_split="none")
    assert module.class_names == ["0", "1", "2", "3", "4"]  # those of all splits; a number is its own index
    assert contents(module)["train"] == [(0, "3"), (1, "1"), (2, "1"), (3, "0")]


def test_string_labels(tmp_path: Path) -> None:
    table(["rose", "daisy", "rose"]).to_parquet(tmp_path / "train.parquet")
    table(["tulip"]).to_parquet(tmp_path / "test.parquet")
    module = ImageDataset(root=str(tmp_path), val_split="none")
    assert module.class_names == ["daisy", "rose", "tulip"]
    assert contents(module) == {"train": [(0, "rose"), (1, "daisy"), (2, "rose")], "test": [(0, "tulip")]}


@pytest.mark.parametrize("labels", [["a", None, "b"], [0, None, 1], [0, -1, 1]])
def test_row_without_a_label(labels: list[Any], tmp_path: Path) -> None:
    table(labels).to_parquet(tmp_path / "train.parquet")
    module = ImageDataset(root=str(tmp_path), val_split="none", batch_size=1)
    samples = module.samples("train")
    assert samples is not None
    with pytest.raises(ValueError, match=r"train: row 1 has label -1, outside 0 to 1 \(1 such samples\)"):
        module.dataset("train", samples)


# columns


def test_columns_are_found_by_type_or_name(tmp_path: Path) -> None:
    table([0, 1], ABC, image="picture", label="kind").to_parquet(tmp_path / "train.parquet")
    module = ImageDataset(root=str(tmp_path), val_split="none")
    assert contents(module)["train"] == [(0, "a"), (1, "b")]
    assert (module.image_column, module.label_column) == ("picture", "kind")


def test_unclear_columns(tmp_path: Path) -> None:
    coarse = datasets.ClassLabel(names=["x", "y"])
    rows = table([0, 1], ABC, label="fine").add_column("coarse", [1, 0]).cast_column("coarse", coarse)
    rows.to_parquet(tmp_path / "train.parquet")
    text = message(tmp_path)
    assert "which column is the label? Found image, fine, coarse; pass --data.label_column" in text
    found = contents(ImageDataset(root=str(tmp_path), val_split="none", label_column="coarse"))
    assert found["train"] == [(0, "y"), (1, "x")]
    assert "no column 'genus': found image, fine, coarse" in message(tmp_path, label_column="genus")
    assert "no column 'photo'" in message(tmp_path, label_column="fine", image_column="photo")


def test_no_image_column(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"x": [1], "label": [0]}).to_parquet(str(tmp_path / "train.parquet"))
    assert "which column is the image? Found x, label; pass --data.image_column" in message(tmp_path)


# nothing there


@pytest.mark.parametrize("root", ["owner/no-such-set", "no_such_folder"])
def test_hub_without_a_network(root: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"data.root='{root}': no such folder, and the hub did not give it"):
        _ = ImageDataset(root=root).tables


def test_missing_folder(tmp_path: Path) -> None:
    (tmp_path / "fashion_mnist_1k").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no such folder\. Nearest: .*fashion_mnist_1k$"):
        _ = ImageDataset(root=str(tmp_path / "fashion_mnist_2k")).tables
    with pytest.raises(FileNotFoundError, match=r"no such folder$"):
        _ = ImageDataset(root=str(tmp_path / "nothing")).tables


def test_folders_without_images(tmp_path: Path) -> None:
    for name in ("empty", "text/train/a", "no_classes/train", "no_classes/test"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "text/train/a/0.txt").write_text("not an image")
    for split in ("train", "test"):  # a naive reader would tell train from test
        pixels(0).save(tmp_path / "no_classes" / split / "0.png")
    for name in ("empty", "text", "no_classes"):
        assert "holds no class folders of images, parquet files or saved dataset" in message(tmp_path / name)
    assert "is a file; expected the folder" in message(tmp_path / "text/train/a/0.txt")


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5])
def test_val_fraction(fraction: float) -> None:
    with pytest.raises(ValueError, match=f"val_fraction={fraction}: expected a share"):
        ImageDataset(root="x", val_fraction=fraction)


# as a run uses it


def test_corrupt_file_is_named(tmp_path: Path) -> None:
    class_folders(tmp_path / "test", ("a", "b"))
    (tmp_path / "test/b/1.png").write_bytes(b"")
    module = ImageDataset(root=str(tmp_path))
    module.configure(
        {"input_size": (3, 8, 8), "mean": [0] * 3, "std": [1] * 3, "interpolation": "bicubic", "crop_pct": 1}
    )
    samples = module.samples("test")
    assert samples is not None
    for cache in ("ram", "none"):
        module.cache = cache
        with pytest.raises(ValueError, match=r"test: 1 of 8 images cannot be read, first .*test/b/1.png"):
            module.dataset("test", samples)
