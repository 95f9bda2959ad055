"""NOAH's few-shot lists from tiny trees."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning import Trainer

from datamodules import FewShot
from datamodules.few_shot import FOLDERS
from datamodules.imagenet import WNIDS
from tests.datamodules.test_vtab import ready
from tests.support.pictures import picture


def write_set(root: Path, task: str, shots: int = 1, lists: str = "", images: str = "", repeat: int = 1) -> None:
    """Lists of one image a class, and links to one file for each."""
    names = FOLDERS[task]
    annotations, folder = root / (lists or names[0]) / "annotations", root / (images or names[0])
    annotations.mkdir(parents=True)
    count = FewShot.tasks[task]
    for split in ("train", "val", "test"):
        paths = []
        for label in range(count):
            for shot in range(shots if split == "train" else 1):
                paths.append((f"a class, {label}/{split} {shot}.jpg", label))
        inside = {"imagenet": split, "cars": "."}.get(task, "images")
        if task == "cars":
            part = "cars_test" if split == "test" else "cars_train"
            paths = [(f"{part}/{split}{label:05d}.jpg", label) for _, label in paths]
        first = folder / inside / paths[0][0]
        for path, label in paths:
            (folder / inside / path).parent.mkdir(parents=True, exist_ok=True)
            if label == 0 and not first.exists():
                picture(len(split), 32, 32).save(first)
            elif not (folder / inside / path).exists():
                (folder / inside / path).symlink_to(first)
        name = {"train": f"train_meta.list.num_shot_{shots}.seed_1"}.get(split, f"{split}_meta.list")
        lines = "".join(f"{path} {label}\n" for path, label in paths) * (repeat if split == "train" else 1)
        (annotations / name).write_text(lines)


@pytest.mark.parametrize("task", ["aircraft", "food101", "flowers", "pets", "cars"])
def test_sets(task: str, tmp_path: Path) -> None:
    write_set(tmp_path, task, lists=FOLDERS[task][0], images=FOLDERS[task][-1])
    module = ready(FewShot(str(tmp_path), task, shots=1, shot_seed=1, batch_size=32))
    count = module.num_classes
    assert {split: len(data) for split, data in module.splits.items()} == {"train": count, "val": count}
    assert module.samples_of("test").labels.tolist() == list(range(count))
    assert "test" in module.samples_of("test").name(0)
    module.trainer = None
    assert sum(batch.size for batch in module.train_dataloader()) == count, "one shot may be less than a batch"
    said = {"shots": 1, "shot_seed": 1, "data_task": task, "resize": "square_crop"}
    assert said.items() <= module.description().items()
    assert FewShot(str(tmp_path), FOLDERS[task][-1]).task == task


def test_final_has_no_validation(tmp_path: Path) -> None:
    write_set(tmp_path, "pets")
    module = ready(FewShot(str(tmp_path), "pets", shots=1, shot_seed=1, split="final"))
    assert not module.validates
    best = FewShot(str(tmp_path), "pets", shots=1, shot_seed=1, split="final", report_best_test=True)
    assert best.samples("val").name(0) == module.samples_of("test").name(0)  # type: ignore[union-attr]


def test_doubled_images_of_pets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(tmp_path, "pets", repeat=2)
    module = FewShot(str(tmp_path), "pets", shots=1, shot_seed=1)
    assert len(module.samples_of("train").labels) == 74 == module.published_sizes["train"]
    text = capsys.readouterr().out
    assert "train_meta.list.num_shot_1.seed_1 of pets names 37 images again; kept" in text
    assert "not comparable" not in text


def test_imagenet(tmp_path: Path) -> None:
    write_set(tmp_path, "imagenet")
    module = FewShot(str(tmp_path), "imagenet", shots=1, shot_seed=1, split="final")
    assert module.class_names == WNIDS
    assert "/train/" in module.samples_of("train").name(0)
    assert module.samples_of("test").name(999).endswith("/val/a class, 999/val 0.jpg")
    assert "val" not in module.published_sizes
    with pytest.raises(ValueError, match=r"pass --data\.split final"):
        FewShot(str(tmp_path), "imagenet")


def test_missing_parts(tmp_path: Path) -> None:
    write_set(tmp_path, "cars")
    with pytest.raises(FileNotFoundError, match=r"train_meta\.list\.num_shot_4\.seed_2 is missing"):
        ready(FewShot(str(tmp_path), "cars", shots=4, shot_seed=2))
    with pytest.raises(FileNotFoundError, match="has no folder fgvc-aircraft/annotations or fgvc_aircraft/annotations"):
        ready(FewShot(str(tmp_path), "aircraft"))
    with pytest.raises(ValueError, match="unknown task 'pet'; nearest: pets"):
        FewShot(str(tmp_path), "pet")


def test_fit_of_one_shot_with_mixup(tmp_path: Path, build: Callable[..., Any], trainer: Callable[..., Trainer]) -> None:
    write_set(tmp_path, "pets")
    data = FewShot(str(tmp_path), "pets", shots=1, shot_seed=1, batch_size=64, augmentation="randaug", num_workers=0)
    runner = trainer()
    runner.fit(build("linear_probe", num_classes=37, mixup=0.8), datamodule=data)
    assert runner.global_step == 1
