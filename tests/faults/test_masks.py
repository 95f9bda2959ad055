"""Images with masks that no run can have."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import TINY
from tests.faults.conftest import Refused
from tests.support.command_line import Answer, folders
from tests.support.scenes import write_pairs, write_scenes


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    write_scenes(tmp_path / "scenes", {"train": 4, "val": 2, "test": 2})
    return tmp_path / "scenes"


@pytest.fixture
def tiny(weights: Path, scenes: Path) -> list[str]:
    """``fit`` of LoRA with a linear head on small scenes."""
    args = "".join(f"--model.backbone_args.{name}={value} " for name, value in TINY.items())
    model = f"--method lora --task segmentation --model.backbone vit_tiny_patch16_224 --model.head linear {args}"
    data = f"--data SegmentationFolder --data.root {scenes} --data.batch_size 2 --data.num_workers 0"
    trainer = "--trainer.accelerator cpu --trainer.max_epochs 1 --trainer.enable_progress_bar false"
    return ["fit", "--model.pretrained", str(weights), *f"{model} {data} {trainer}".split()]


def test_mistakes_in_masks(tiny: list[str], scenes: Path, refused: Refused) -> None:
    """Each stops the run before training, with the file and the reason."""
    mask, other = scenes / "masks/train/1.png", scenes / "masks/train/2.png"
    for values, words in {
        "size": (np.zeros((30, 32), np.uint8), "its mask has 32 x 30 pixels, the image 32 x 32"),
        "class": (np.full((32, 32), 4, np.uint8), "its mask has the class 4, outside 0 to 3"),
        "colour": (np.zeros((32, 32, 3), np.uint8), "its mask has the mode RGB"),
        "empty": (np.full((32, 32), 255, np.uint8), "its mask is empty"),
    }.values():
        Image.fromarray(values).save(mask)
        refused(*tiny, says=("1 of 4 images cannot be read", "images/train/1.png", words, "--data.on_corrupt skip"))
    shutil.copy(other, mask)
    other.unlink()
    refused(*tiny, says=("1 of 4 files have no mask of the same name", "images/train/2.png"))


def test_wrong_pairs_of_task_and_data(tiny: list[str], images: Path, refused: Refused) -> None:
    labels = ["--data", "ImageDataset", "--data.root", str(images)]
    at = tiny.index("--data")
    refused(*tiny[:at], *labels, "--trainer.accelerator=cpu", says=("reads masks: pass", "--data SegmentationFolder"))
    task = tiny.index("--task")
    head = tiny.index("--model.head")
    classification = [*tiny[:task], *tiny[task + 2 : head], *tiny[head + 2 :]]
    refused(*classification, says=("SegmentationFolder has masks", "pass --task segmentation"))


def test_backbone_without_maps(tiny: list[str], refused: Refused) -> None:
    mixer = ["fit", "--method", "lora", "--task", "segmentation", "--model.backbone=mixer_s32_224"]
    at = tiny.index("--data")
    refused(*mixer, "--model.pretrained=false", *tiny[at:], says="MlpMixer has no maps of strides 4, 8, 16 and 32")


def test_fit_test_predict_and_merge(tiny: list[str], call: Callable[..., Answer], tmp_path: Path) -> None:
    """Without a mistake the same command trains; the adapter is tested, predicts masks, and merges."""
    assert call(*tiny, "--run_root", tmp_path / "runs").code == 0
    (run,) = folders(tmp_path / "runs")
    assert (run / "validation.png").is_file()
    data = tiny[tiny.index("--data") : tiny.index("--trainer.max_epochs")]
    for command in ("test", "predict"):
        answer = call(command, "--ckpt_path", run / "adapter", *data, "--run_root", tmp_path / command)
        assert answer.code == 0, answer.err
    (predicted,) = folders(tmp_path / "predict")
    assert sorted(file.name for file in (predicted / "masks").iterdir()) == ["0.png", "1.png"]
    answer = call("merge", "--ckpt_path", run / "adapter", "--output", tmp_path / "merged")
    assert answer.code == 0, answer.err
    assert "largest difference of a logit, merged against unmerged: " in answer.out
    files = {file.name for file in (tmp_path / "merged").iterdir()}
    assert files == {"README.md", "config.json", "model.safetensors", "head.safetensors"}


def test_crops_larger_than_the_images(tiny: list[str], call: Callable[..., Answer], tmp_path: Path) -> None:
    """They are padded, and the run names their number before it trains."""
    args = [arg.replace("img_size=32", "img_size=64") for arg in tiny]
    answer = call(*args, "--trainer.limit_train_batches", "1", "--run_root", tmp_path / "runs")
    assert answer.code == 0, answer.err
    assert "note: train: 4 of 4 images are smaller than a crop, 64 x 64 pixels" in answer.out


def test_published_sets(tiny: list[str], tmp_path: Path, refused: Refused) -> None:
    """The same mistakes in the layouts of archives, and folders that are something else."""
    at = tiny.index("--data")
    model = [*tiny[:at], "--trainer.accelerator=cpu", "--data.num_workers=0", "--data.batch_size=1"]
    for name, says in {
        "ADE20K": "images/training: no such folder",
        "COCOStuff": "images/train2017: no such folder",
        "Polyps": "Kvasir-SEG/images: no such folder",
    }.items():
        refused(*model, "--data", name, "--data.root", str(tmp_path), says=says)
    root = tmp_path / "ade"
    masks = {"a": np.full((40, 40), 151, np.uint8), "b": np.zeros((40, 40), np.uint8)}
    write_pairs(root / "images/training", root / "annotations/training", masks)
    ade = [*model, "--data", "ADE20K", "--data.root", str(root)]
    refused(*ade, says=("2 of 2 images cannot be read", "its mask has the class 150, outside 0 to 149"))
    Image.fromarray(np.ones((40, 40), np.uint8)).save(root / "annotations/training/a.png")
    refused(*ade, says=("1 of 2 images cannot be read", "b.jpg", "its mask is empty"))


def test_leak_of_the_official_polyps(tiny: list[str], tmp_path: Path, refused: Refused) -> None:
    masks = {str(number): np.full((40, 40), 255, np.uint8) for number in range(4)}
    for name in ("Kvasir-SEG", "sessile-main-Kvasir-SEG"):
        write_pairs(tmp_path / name / "images", tmp_path / name / "masks", masks)
    args = ["--data", "Polyps", "--data.root", str(tmp_path), "--data.split", "official", "--data.batch_size", "2"]
    model = [*tiny[: tiny.index("--data")], "--trainer.accelerator=cpu", "--test_after_fit=true"]
    refused(*model, *args, says=("train and test share 4 of 4 images", "--data.allow_overlap true"))
