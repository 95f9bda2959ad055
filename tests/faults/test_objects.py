"""Images with objects that no run can have, and one run without a mistake."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Refused
from tests.lightning_modules.test_detection import OPTIONS
from tests.support.command_line import Answer, folders
from tests.support.objects import read_json, write_json, write_objects


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    write_objects(tmp_path / "objects", {"train": 4, "val": 3, "test": 3})
    return tmp_path / "objects"


@pytest.fixture
def tiny(weights: Path, objects: Path) -> list[str]:
    """``fit`` of LoRA with Mask R-CNN on small images with objects."""
    model = "--method lora --task detection --model.backbone vit_tiny_patch16_224"
    given = {name: value for name, value in OPTIONS.items() if name not in ("backbone", "pretrained", "num_classes")}
    options = [f"--model.{name}={json.dumps(value)}" for name, value in given.items()]
    sizes = "--data.short_sides [32] --data.long_side 48 --data.batch_size 2 --data.num_workers 0"
    trainer = "--trainer.accelerator cpu --trainer.max_epochs 1 --trainer.enable_progress_bar false"
    data = f"--data DetectionFolder --data.root {objects} {sizes}"
    return ["fit", "--model.pretrained", str(weights), *model.split(), *options, *data.split(), *trainer.split()]


def test_mistakes_in_annotations(tiny: list[str], objects: Path, refused: Refused) -> None:
    """Each stops the run before training, with the file and the reason."""
    good: dict[str, Any] = read_json(objects)
    for change, says in (
        ({"bbox": [70, 2, 9, 9]}, ("1 of 4 images cannot be read", "0.png", "lies outside", "--data.on_corrupt skip")),
        ({"category_id": 5}, ("annotation 0 has the category 5; the file lists 3, 7",)),
    ):
        first, *others = good["annotations"]
        write_json(objects, "train", good | {"annotations": [first | change, *others]})
        refused(*tiny, says=says)
    crowds = [entry | {"iscrowd": 1} for entry in good["annotations"]]
    write_json(objects, "train", good | {"annotations": crowds})
    refused(*tiny, says="train: none of the 4 images has an object that is no crowd")


def test_wrong_pairs_of_task_data_and_backbone(tiny: list[str], images: Path, refused: Refused) -> None:
    at = tiny.index("--data")
    labels = ["--data", "ImageDataset", "--data.root", str(images)]
    refused(*tiny[:at], *labels, "--trainer.accelerator=cpu", says=("reads objects: pass", "--data DetectionFolder"))
    fixed = [arg.replace(', "dynamic_img_size": true', "") for arg in tiny]
    refused(*fixed, says=("images of 3 x 32 x 48", "Add --model.backbone_args.dynamic_img_size true"))


def test_fit_test_predict_and_merge(
    tiny: list[str], call: Callable[..., Answer], objects: Path, tmp_path: Path
) -> None:
    """Without a mistake the same command trains; the adapter is tested, predicts objects, and merges where it can."""
    content = read_json(objects)
    write_json(objects, "train", content | {"annotations": content["annotations"][2:]})
    answer = call(*tiny, "--run_root", tmp_path / "runs")
    assert answer.code == 0, answer.err
    assert "note: train: 1 of 4 images have no object to learn from; left out" in answer.out
    (run,) = folders(tmp_path / "runs")
    assert (run / "validation.png").is_file()
    result = json.loads((run / "result.json").read_text())
    assert result["metric"]["name"] == "box_map"
    assert {"val/box_map", "val/mask_map_50", "cost/gflops", "train/loss_mask"} <= result.keys()
    data = tiny[tiny.index("--data") : tiny.index("--trainer.max_epochs")]
    for command in ("test", "predict"):
        answer = call(command, "--ckpt_path", run / "adapter", *data, "--run_root", tmp_path / command)
        assert answer.code == 0, answer.err
    (predicted,) = folders(tmp_path / "predict")
    entries = json.loads((predicted / "predictions.json").read_text())
    assert {entry["image_id"] for entry in entries} <= {100, 101, 102}
    assert len([*(predicted / "pictures").iterdir()]) == 3
    answer = call("merge", "--ckpt_path", run / "adapter", "--output", tmp_path / "merged")
    assert answer.code == 0, answer.err
    assert {file.name for file in (tmp_path / "merged").iterdir()} >= {"model.safetensors", "head.safetensors"}
    answer = call("export", "--format", "onnx", "--ckpt_path", run / "adapter", "--output", tmp_path / "model.onnx")
    assert answer.code == 1
    assert "finds another number of objects in each image" in answer.err


def test_skipped_tokens(tiny: list[str], call: Callable[..., Answer], tmp_path: Path) -> None:
    """DyT counts what ran over images of two sizes, and draws it."""
    args = ["dyt" if arg == "lora" else arg for arg in tiny]
    answer = call(*args, "--trainer.limit_train_batches", "1", "--run_root", tmp_path / "runs")
    assert answer.code == 0, answer.err
    (run,) = folders(tmp_path / "runs")
    result = json.loads((run / "result.json").read_text())
    assert 0 < result["val/kept/all"] < 1
    assert result["cost/gflops"] > 0
    assert (run / "kept_tokens.png").is_file()
