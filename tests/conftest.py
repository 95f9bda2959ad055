"""Options and fixtures of the whole suite: a tiny backbone with a weight file, and a tiny folder of image files."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# before any import that reads them: no hub, no telemetry, no cache in the home folder
os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "HF_HOME": tempfile.mkdtemp(prefix="graft-tests-")}

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
from lightning import Trainer, seed_everything  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from datamodules import ImageDataset  # noqa: E402
from lightning_modules import compose  # noqa: E402
from lightning_modules.classification import Classification  # noqa: E402
from methods import METHODS, PEFTMethod  # noqa: E402

BACKBONE = "vit_tiny_patch16_224"
TINY: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
# what a method needs to fit the tiny backbone
TINY_OPTIONS: dict[str, dict[str, Any]] = {
    "sct": {"sct_channels": 8},
    "spt": {"spt_budget": 0.03, "spt_alpha": 0.5, "spt_beta": 1.3},
}
# a method that changes how another one trains is tested on this one
STACK = {name: name if method.alone else f"lora+{name}" for name, method in METHODS.items()}
CLASSES = ("daisy", "rose", "tulip")

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-dir", default=str(ROOT / "tests/golden"), help="Folder of reference outputs of the original codes."
    )


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weight file for the tiny backbone, with a classifier of 5 classes."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(timm.create_model(BACKBONE, num_classes=5, **TINY).state_dict(), path)
    return path


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder ``train|val|test/<class>/*.png`` of small images whose colour tells their class."""
    root = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for split, count in {"train": 8, "val": 3, "test": 5}.items():
        for index, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 120, (40, 36, 3), dtype=np.uint8)
                pixels[..., index] += 120
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def composed(method: str) -> type[PEFTMethod]:
    """The class of a method, or of a stack such as ``lora+velora``, for classification."""
    return compose(*(METHODS[name] for name in STACK.get(method, method).split("+")), task=Classification)


@pytest.fixture
def build(weights: Path) -> Callable[..., PEFTMethod]:
    """``build("ssf", ssf_init="identity")``: a method on the tiny pretrained backbone, not adapted yet."""

    def make(method: str, **options: Any) -> PEFTMethod:
        defaults: dict[str, Any] = {"backbone": BACKBONE, "backbone_args": TINY, "pretrained": str(weights)}
        defaults |= {"num_classes": 3, "lr": 1e-2}
        seed_everything(0, verbose=False)
        return composed(method)(**defaults | TINY_OPTIONS.get(method, {}) | options)

    return make


@pytest.fixture
def data(images: Path) -> Callable[..., ImageDataset]:
    """``data(batch_size=4)``: a datamodule over the tiny images, six training steps an epoch by default."""
    return lambda **options: ImageDataset(root=str(images), **{"batch_size": 4, "resize": "direct"} | options)


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """``trainer(max_epochs=2)``: a quiet CPU trainer that writes below ``tmp_path``."""

    def make(**options: Any) -> Trainer:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        defaults = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "enable_checkpointing": False}
        return Trainer(default_root_dir=tmp_path, **quiet | defaults | options)

    return make
