"""Every method on segmentation: it trains, is saved and merges, or it is refused before data with the reason."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import seed_everything
from torch import nn

from checkpoints.delta import write_adapter
from commands.methods.cell import check_step, select
from lightning_modules.batch import Batch
from lightning_modules.segmentation import Segmentation
from methods import METHODS, PEFTMethod, compose
from tests.conftest import BACKBONE, STACK, TINY, TINY_OPTIONS, checkpoint_of, perturb
from tests.lightning_modules.test_segmentation import coloured

HEAD = {"head": "upernet", "head_channels": 8}
SWIN = {
    "backbone": "swin_tiny_patch4_window7_224",
    "backbone_args": {
        "img_size": 64,
        "embed_dim": 24,
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 2, 2, 4),
        "window_size": 2,
    },
}
OPTIONS = TINY_OPTIONS | {"gps": {"gps_loss": "ce"}, "hst": {"hst_dims": [8, 12, 16, 24], "hst_heads": [2, 2, 2, 2]}}
REFUSED = {
    "knn": "KNN compares features of images of known classes",
    "nearest_mean": "NearestMean compares features of images of known classes",
    "last": "LAST gives one sequence of tokens",
    "lst": "LST gives one sequence of tokens",
    "vqt": "VQT gives features to a classifier",
    "mlp_head": "MLPHead puts layers before a classifier",
    "sct": "SCT averages scores over the classes of images",
    "sidetune": "Sidetune adds to the input of a classifier",
}
SERVING = [name for name in METHODS if name not in REFUSED]
ON_SWIN = ["lora", "ssf", "full", "bitfit", "gps"]


def build(method: str, **options: Any) -> PEFTMethod:
    """A method on a small backbone for four classes of pixels, with random weights, not adapted yet."""
    names = STACK[method].split("+")
    own: dict[str, Any] = {option: value for name in names for option, value in OPTIONS.get(name, {}).items()}
    seed_everything(0, verbose=False)
    cls = compose(*(METHODS[name] for name in names), task=Segmentation)
    plain = {"backbone": BACKBONE, "backbone_args": TINY, "pretrained": False, "num_classes": 4}
    model: Any = cls(**plain | HEAD | own | options)
    model.budget_unit = 1e4  # of SPT, whose budgets are millions of parameters otherwise
    return model


@cache
def batch(side: int = 32) -> Batch:
    images, labels = coloured(2)
    enlarge = nn.Upsample((side, side))
    return Batch.of(enlarge(images), enlarge(labels[:, None].float())[:, 0].long())


def trained(method: str, side: int = 32, **options: Any) -> PEFTMethod:
    """A method after one step, in which frozen weights stayed and each trained one had a gradient."""
    model = build(method, **options)
    model.adapt_before_data()
    select(model, batch(side))
    check_step(model, batch(side))
    perturb(model, 0.01)
    return model.eval()


@torch.no_grad()
def check_files_and_merge(model: Any, inputs: Batch, folder: Path) -> None:
    """The adapter folder gives the outputs of the model, and so does the merged backbone under its head."""
    expected = model.infer(inputs)
    assert expected.shape == (2, 4, *inputs.targets.shape[1:])
    write_adapter(folder, checkpoint_of(model))
    seed_everything(0, verbose=False)  # for the same random backbone
    loaded = type(model).from_delta(folder).eval()
    torch.testing.assert_close(loaded.infer(inputs), expected, atol=1e-5, rtol=1e-5)
    if model.mergeable:
        merged = model.merge()
        assert model.plain_keys <= merged.state_dict().keys()
        outputs = model.outputs_with(merged, inputs.inputs)
        torch.testing.assert_close(outputs, model(inputs.inputs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", SERVING)
def test_method(method: str, tmp_path: Path) -> None:
    model = trained(method)
    assert model.parameter_counts()["head"] > 0
    check_files_and_merge(model, batch(), tmp_path)


@pytest.mark.parametrize("method", ON_SWIN)
def test_method_on_stages(method: str, tmp_path: Path) -> None:
    model = trained(method, 64, **SWIN)
    assert model.parameter_counts()["neck"] == 0
    check_files_and_merge(model, batch(64), tmp_path)


@pytest.mark.parametrize("method", REFUSED)
def test_refused(method: str) -> None:
    """Before any data, with the reason and another method."""
    with pytest.raises(ValueError, match=rf"{REFUSED[method]}.*: use "):
        build(method).adapt_before_data()


def test_contrastive_scores() -> None:
    with pytest.raises(ValueError, match="gps_loss=supcon compares images by their classes, and masks have none"):
        build("gps", gps_loss="supcon")


def test_prompts_in_windows() -> None:
    with pytest.raises(ValueError, match="a Swin passes its prompts on with its maps"):
        build("vpt", **SWIN)


@pytest.mark.parametrize("deep", [True, False])
def test_prompts_are_cut(deep: bool) -> None:
    """Maps have the patches alone, with prompts of each block and of the first block."""
    model = build("vpt", prompt_deep=deep, prompt_length=5)
    model.configure_model()
    with torch.no_grad():
        maps = model.features(batch().inputs)
    assert [tuple(x.shape) for x in maps] == [(2, 48, 4, 4)] * 4


def test_own_pyramid_of_hst() -> None:
    """HST's maps take the place of the neck."""
    model: Any = build("hst")
    assert "neck" in model.heads()
    model.configure_model()
    assert model.heads().keys() == {"decoder", "auxiliary"}
    assert model.parameter_counts()["neck"] == 0
    assert [x.shape[1] for x in model.eval().features(batch().inputs)] == [8, 12, 16, 24]


def test_tokens_of_the_last_block_of_dyt() -> None:
    """All are computed, because a map needs them."""
    model: Any = build("dyt")
    model.configure_model()
    assert not any(op.prefix_only for op in model.dispatches.values())
    model.train()
    terms = model.terms(batch())
    assert terms.keys() == {"task_loss", "auxiliary_loss", "rate_loss", "complete_loss", "distill_loss"}


def test_statistics_stay_while_parameters_are_found() -> None:
    """The pass that finds used parameters changes no running mean of a head beside the backbone."""
    model: Any = build("bitfit").train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.used_names()
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert model.training
    assert model.decoder.training


def test_statistics_stay_while_a_method_adapts() -> None:
    """The pass in which SSF follows the outputs of layers changes no running mean of a head beside the backbone."""
    model: Any = build("ssf").train()
    before = {name: buffer.clone() for name, buffer in model.decoder.named_buffers()}
    model.configure_model()
    assert before
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.decoder.named_buffers())
