"""The demo on tiny data."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import BACKBONE, TINY
from tests.support.scenes import write_scenes
from train import main


@pytest.fixture
def fit_config(images: Path, weights: Path, tmp_path: Path) -> Path:
    """One epoch on the tiny images, with other values for ``full``."""
    model = {"backbone": BACKBONE, "pretrained": str(weights), "backbone_args": TINY}
    content: dict[str, Any] = {
        "model": {"init_args": model},
        "data": {"class_path": "ImageDataset", "init_args": {"root": str(images), "batch_size": 8}},
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "adapter.yaml").write_text("model: {init_args: {adapter_dim: 3}}")
    return tmp_path / "tiny.yaml"


def test_table(fit_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "demo",
        "--methods",
        "ssf,adapter",
        "--fit_config",
        str(fit_config),
        "--run_root",
        str(tmp_path / "runs"),
    ]
    main(command)
    out = capsys.readouterr().out
    ssf, adapter = (
        next(line for line in out.splitlines() if line.startswith(f"│ {name} ")) for name in ("ssf", "adapter")
    )
    assert out.count("┏") == 1, "one table, of all methods"
    for column in ("top-1 (%) before", "images/s", "merged vs not"):
        assert column in out
    assert float(ssf.split("│")[-2]) < 1e-4
    assert adapter.split("│")[-2].strip() == "-", "its adapters are not linear"
    (folder,) = (tmp_path / "runs/adapter/fit").glob("*/*/*")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["init_args"]["adapter_dim"] == 3, "the file beside the config wins"
    assert (folder / "adapter").is_dir()
    main(command)
    assert (tmp_path / "runs/ssf-2").is_dir(), "a demo runs anew"


def test_table_of_another_task(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Masks of the test images, one picture of validation images, and the parts of the trained parameters."""
    write_scenes(tmp_path / "scenes", {"train": 4, "val": 2, "test": 2})
    model = {"backbone": BACKBONE, "pretrained": str(weights), "backbone_args": TINY, "head": "semantic_fpn"}
    content: dict[str, Any] = {
        "model": {"init_args": model | {"head_channels": 8}},
        "data": {"class_path": "SegmentationFolder", "init_args": {"root": str(tmp_path / "scenes"), "batch_size": 2}},
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False},
    }
    config, runs = tmp_path / "scenes.yaml", tmp_path / "runs"
    config.write_text(yaml.safe_dump(content))
    options = ["--methods", "lora", "--task", "segmentation", "--fit_config", str(config), "--run_root", str(runs)]
    main(["demo", *options])
    out = capsys.readouterr().out
    for column in ("mIoU (%) before", "method", "neck", "head", "images/s"):
        assert column in out
    (line,) = (line for line in out.splitlines() if line.startswith("│ lora "))
    assert float(line.split("│")[-2]) < 1e-4, "the merged backbone under the head"
    (folder,) = (runs / "lora/fit").glob("*/*/*")
    assert (folder / "validation.png").is_file()


def test_unknown_method(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["demo", "--methods", "sff"])
    assert "unknown method 'sff'; nearest: ssf" in capsys.readouterr().err
