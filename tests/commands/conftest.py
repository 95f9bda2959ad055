"""What tests of several commands share."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import BACKBONE, TINY


@pytest.fixture
def fit_config(images: Path, tmp_path: Path) -> Path:
    """One epoch on the tiny images."""
    args = {name: value for name, value in TINY.items() if name not in ("embed_dim", "num_heads")}
    model = {"backbone": BACKBONE, "pretrained": False, "backbone_args": args}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    content: dict[str, Any] = {
        "model": {"class_path": "methods.FullClassification", "init_args": model},
        "data": {"class_path": "ImageDataset", "init_args": {"root": str(images), "batch_size": 8, "resize": "direct"}},
        "trainer": {"accelerator": "cpu", "max_epochs": 1, **quiet},
        "checkpoint": {"save_top_k": 0, "save_last": False},
    }
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(content))
    return path
