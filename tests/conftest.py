"""What the whole suite uses: a tiny backbone with a weight file, a tiny folder of image files, two ranks."""

import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
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
from torch import nn  # noqa: E402

from datamodules import ImageDataset  # noqa: E402
from lightning_modules.classification import Classification  # noqa: E402
from methods import METHODS, PEFTMethod, compose  # noqa: E402
from tests.support.ranks import TwoRanks  # noqa: E402

BACKBONE = "vit_tiny_patch16_224"
TINY: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
# what a method needs to fit the tiny backbone
TINY_OPTIONS: dict[str, dict[str, Any]] = {
    "diff_pruning": {"diff_alpha_init": 1.0},  # half open: a gate that is open has no gradient
    "glora": {"glora_d": "none"},  # the biases of a new network are 0, so that their factor has no gradient
    "hf_peft": {"peft_config": {"peft_type": "LORA", "r": 2, "target_modules": ["qkv", "fc1"]}},
    "noah": {"noah_sizes": [2, 8]},
    "sct": {"sct_channels": 8},
    "sidetune": {"sidetune_pretrained": False},  # ImageNet's would be downloaded
    "width_scaling": {"width_base": 48},
    "spt": {"spt_budget": 0.03, "spt_alpha": 0.5, "spt_beta": 1.3},
}
# a method that changes how another one trains is tested on this one
STACK = {name: name if method.standalone else f"lora+{name}" for name, method in METHODS.items()}
CLASSES = ("daisy", "rose", "tulip")

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-dir", default=str(ROOT / "tests/golden"), help="Folder of reference outputs of the original codes."
    )
    parser.addoption("--gpu-tests-on", default="cuda", help="Device of the tests marked gpu; cpu to try them.")


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


def build_tiny(weights: Path, method: str, **options: Any) -> PEFTMethod:
    """A method on the tiny pretrained backbone, not adapted yet."""
    defaults: dict[str, Any] = {"backbone": BACKBONE, "backbone_args": TINY, "pretrained": str(weights)}
    defaults |= {"num_classes": 3, "lr": 1e-2}
    seed_everything(0, verbose=False)
    return composed(method)(**defaults | TINY_OPTIONS.get(method, {}) | options)


def random_tiny(method: str, **options: Any) -> PEFTMethod:
    """A method on the tiny backbone with random weights, not adapted yet."""
    defaults: dict[str, Any] = {"backbone": BACKBONE, "backbone_args": TINY, "pretrained": False, "num_classes": 3}
    return composed(method)(**defaults | TINY_OPTIONS.get(method, {}) | options)


def quiet_trainer(folder: Path, **options: Any) -> Trainer:
    """A trainer on the CPU that prints nothing, keeps no checkpoints and writes what it must below ``folder``."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "enable_checkpointing": False}
    return Trainer(default_root_dir=folder, **quiet | defaults | options)


def perturb(model: nn.Module, scale: float = 0.05) -> None:
    """Move every parameter that trains away from its initial value."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=generator)


def checkpoint_of(model: PEFTMethod) -> dict[str, Any]:
    """What Lightning would save of a model, without its trainer's part."""
    checkpoint: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    return checkpoint


@pytest.fixture
def build(weights: Path) -> Callable[..., PEFTMethod]:
    """``build("ssf", ssf_init="identity")``: see ``build_tiny``."""
    return partial(build_tiny, weights)


@pytest.fixture
def data(images: Path) -> Callable[..., ImageDataset]:
    """``data(batch_size=4)``: a datamodule over the tiny images, six training steps an epoch by default."""
    return lambda **options: ImageDataset(root=str(images), **{"batch_size": 4, "resize": "direct"} | options)


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """``trainer(max_epochs=2)``: see ``quiet_trainer``; it writes below ``tmp_path``."""
    return partial(quiet_trainer, tmp_path)


@pytest.fixture
def on_meta() -> Iterator[None]:
    """New tensors of the test have shapes, but no values: models of full size take no time."""
    with torch.device("meta"):
        yield


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[TwoRanks]:
    """``two_ranks(function, *args)``: what ``function(rank, *args)`` returns in each of two processes."""
    ranks = TwoRanks()
    yield ranks
    ranks.stop()
