"""SCT."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import random_tiny
from tests.support.batches import as_batch
from tests.support.golden import Golden, head_parameters, score_in_a_fit

COUNTS = {"vit_base_patch16_224": 111_744}
IDENTITY: dict[str, Any] | None = {"sct_init": "zeros"}
PLACES = {
    "sct_attn.adapt_linear": "sct.linear",
    "sct_mlp.adapt_linear": "mlp.sct.linear",
    "attn.q_l": "attn.qkv.sct_q.linear",
    "attn.v_l": "attn.qkv.sct_v.linear",
}
MODES = {"sct_attn": "attn", "sct_mlp": "mlp", "sct_qkv": "qkv"}


def scores(model: Any) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    width = 3 * model.backbone.embed_dim if model.sct_mode == "qkv" else model.backbone.embed_dim
    found = {name: torch.rand(model.num_classes, width, generator=generator) for name in model.score_targets()}
    return found | {"images": torch.ones(model.num_classes)}


def check_sct(golden: Golden) -> None:
    tensors, calibration = golden.tensors, golden.part("calib")
    for name, mode in MODES.items():
        chosen = golden.part(f"select.{name}")
        model: Any = golden.build("sct", sct_mode=mode, sct_channels=len(next(iter(chosen.values()))))
        sizes = calibration["batch_sizes"].tolist()
        batches = map(as_batch, calibration["input"].split(sizes), calibration["label"].long().split(sizes))
        score_in_a_fit(model, list(batches))
        assert {n.removeprefix("blocks."): t.tolist() for n, t in model.selection.items()} == {
            n: t.tolist() for n, t in chosen.items()
        }
        ours = {}
        for key, value in golden.part(f"{name}.peft").items():
            path, _, kind = key.rpartition(".")
            for theirs, place in PLACES.items():
                path = path.replace(theirs, place)
            parameter = model.backbone.get_parameter(f"{path}.{kind}")
            parameter.data.copy_(value)
            ours[key] = parameter
        torch.testing.assert_close(model(tensors["input"]), tensors[f"{name}.logits"], atol=1e-5, rtol=0)
        golden.tensors |= {"loss": tensors[f"{name}.loss"]}
        golden.tensors |= {f"grad.{key}": grad for key, grad in golden.part(f"{name}.grad").items()}
        golden.check_gradients(model, ours | head_parameters(model))
        if mode != "attn":
            golden.check_merge(model)
        golden.tensors = {key: tensor for key, tensor in golden.tensors.items() if not key.startswith("grad.")}


GOLDEN = {"sct": check_sct}


@pytest.mark.parametrize(("mode", "layers"), [("attn", 1), ("mlp", 1), ("qkv", 2)])
def test_counts(mode: str, layers: int, build: Any) -> None:
    model = build("sct", sct_mode=mode, sct_channels=6)
    model.selection = model.select(scores(model))
    model.configure_model()
    assert model.parameter_counts()["method"] == layers * 2 * (6 * 6 + 6)


@pytest.mark.parametrize("mode", ["attn", "mlp", "qkv"])
@pytest.mark.parametrize("on_x", [False, True])
def test_merge_or_refusal(mode: str, on_x: bool, build: Any) -> None:
    model = build("sct", sct_mode=mode, sct_scale=0.3, sct_scale_on_x=on_x)
    model.selection = model.select(scores(model))
    model.configure_model()
    images = torch.randn(2, 3, 32, 32)
    if mode == "attn":
        with pytest.raises(TypeError, match="cannot be merged because"):
            model.merge()
        return
    with torch.no_grad():
        torch.testing.assert_close(model.merge()(images), model.eval()(images), atol=1e-5, rtol=0)


def test_selection_is_blind_to_order_and_batch_size(build: Any) -> None:
    images, labels = torch.randn(12, 3, 32, 32), torch.arange(12) % 3
    chosen = []
    for order, size in ((torch.arange(12), 12), (torch.randperm(12), 5)):
        model = build("sct")
        with model.build_scorer() as scorer:
            for part in order.split(size):
                scorer.observe(labels[part])
                model.eval().score_loss(as_batch(images[part], labels[part]))
        chosen.append(model.select(scorer.sums))
    assert all(torch.equal(chosen[0][name], chosen[1][name]) for name in chosen[0])


def test_too_many_channels_are_refused(build: Any) -> None:
    model = build("sct", sct_channels=49)
    with pytest.raises(ValueError, match="sct_channels=49: the backbone has only 48"):
        model.select(scores(model))
    with pytest.raises(ValueError, match="at least 1"):
        random_tiny("sct", sct_channels=0)
