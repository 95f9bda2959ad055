"""Every method on clips: it trains, is saved and merges, or it is refused before data with the reason."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import seed_everything

from checkpoints.delta import write_adapter
from commands.methods.cell import check_step, select
from lightning_modules.batch import Batch
from lightning_modules.video_classification import VideoClassification
from methods import METHODS, PEFTMethod, compose
from tests.conftest import STACK, TINY_OPTIONS, checkpoint_of, perturb
from tests.lightning_modules.test_video_classification import OPTIONS as PLAIN

OPTIONS = TINY_OPTIONS | {"gps": {"gps_loss": "ce"}, "hst": {"hst_dims": [8, 12, 16, 24], "hst_heads": [2, 2, 2, 2]}}
REFUSED = {  # by attentive pooling
    "hst": r"pooling=attentive reads tokens of 48 channels, and this method gives 24 channels",
    "vqt": r"pooling=attentive reads tokens of 48 channels, and this method gives 144 channels",
    "sidetune": r"Sidetune adds features of each frame to the input of the classifier",
}
SERVED = [name for name, method in METHODS.items() if name not in REFUSED and not method.refusal(VideoClassification)]
WITH_MEAN = ["hst", "sidetune", "last", "dyt", "sct", "mlp_head", "lora"]


def build(method: str, **options: Any) -> PEFTMethod:
    """A method on a small backbone for three classes of clips of two frames, with random weights, not adapted yet."""
    names = STACK[method].split("+")
    own: dict[str, Any] = {option: value for name in names for option, value in OPTIONS.get(name, {}).items()}
    seed_everything(0, verbose=False)
    model: Any = compose(*(METHODS[name] for name in names), task=VideoClassification)(**PLAIN | own | options)
    model.budget_unit = 1e4  # of SPT, whose budgets are millions of parameters otherwise
    return model


@cache
def batch() -> Batch:
    """Three clips of two frames."""
    return Batch.of(torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(3))


def check(method: str, folder: Path, **options: Any) -> None:
    """A step trains what shall train, the adapter folder gives the outputs of the model, and so does a merge."""
    model: Any = build(method, **options)
    model.adapt_before_data()
    select(model, batch())
    check_step(model, batch())
    perturb(model, 0.01)
    model.eval()
    with torch.no_grad():
        expected = model.infer(batch())
        assert expected.shape == (3, 3)
        write_adapter(folder, checkpoint_of(model))
        seed_everything(0, verbose=False)  # for the same random backbone
        loaded = type(model).from_delta(folder).eval()
        torch.testing.assert_close(loaded.infer(batch()), expected, atol=1e-5, rtol=1e-5)
        if model.mergeable:
            outputs = model.outputs_with(model.merge(), batch().inputs)
            torch.testing.assert_close(outputs, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", SERVED)
def test_attentive(method: str, tmp_path: Path) -> None:
    check(method, tmp_path)


@pytest.mark.parametrize("method", WITH_MEAN)
def test_mean(method: str, tmp_path: Path) -> None:
    check(method, tmp_path, pooling="mean")


@pytest.mark.parametrize("method", REFUSED)
def test_refused(method: str) -> None:
    """Before any data, with the reason and the remedy."""
    with pytest.raises(ValueError, match=rf"{REFUSED[method]}.*: pass --model\.pooling mean"):
        build(method).adapt_before_data()


def test_swin(tmp_path: Path) -> None:
    args = {"img_size": 64, "embed_dim": 24, "depths": (1, 1), "num_heads": (1, 2), "window_size": 2}
    model: Any = build("lora", backbone="swin_tiny_patch4_window7_224", backbone_args=args, pooling="mean")
    model.configure_model()
    assert model(torch.randn(4, 3, 64, 64)).shape == (2, 3)


def test_contrastive_scores() -> None:
    with pytest.raises(ValueError, match="gps_loss=supcon compares views of images, not of clips: use gps_loss ce"):
        build("gps", gps_loss="supcon")


@torch.no_grad()
def test_dyt_skips_tokens_of_each_frame() -> None:
    """Skipping gives the outputs of masking; frames keep different numbers of tokens, in the last block too."""
    model: Any = build("dyt")
    model.configure_model()
    perturb(model)
    model.eval()
    with model.masks() as masks:
        skipped = model(batch().inputs)
    kept = torch.stack(masks).sum(2)
    assert kept.shape == (2, 6)
    assert len(kept.flatten().unique()) > 2
    assert not any(op.prefix_only for op in model.dispatches.values())
    for op in model.dispatches.values():
        op.skip = "dense"
    torch.testing.assert_close(model(batch().inputs), skipped, atol=1e-5, rtol=1e-5)
