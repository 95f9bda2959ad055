"""GPS."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from callbacks.scoring.scorers import SignedGradients
from methods import PEFTMethod
from methods.gps import supervised_contrastive
from tests.conftest import random_tiny
from tests.support import made_up
from tests.support.batches import as_batch
from tests.support.golden import Golden, head_parameters, score_in_a_fit

COUNTS = {
    "vit_base_patch16_224": 167_424,
    "swin_base_patch4_window7_224": 282_168,
    "convnext_base": 239_488,
}
IDENTITY: dict[str, Any] | None = {}
scores = made_up.normal


def masks(model: Any, selection: dict[str, Tensor]) -> dict[str, Tensor]:
    """1 where a backbone parameter trains."""
    kinds, found = model.kinds(), {}
    plain = {name: p for name, p in model.backbone.named_parameters() if not name.endswith("_entries.values")}
    for name, parameter in plain.items():
        found[name] = torch.full_like(parameter, float(kinds[name] == "whole"))
        if name in selection:
            found[name].view(-1)[selection[name]] = 1
    return found


def check_gps(golden: Golden) -> None:
    part, tensors = golden.part("score"), golden.tensors
    model: Any = golden.build("gps")  # not adapted: it has no selection yet
    size = int(part["batch_size"])
    scorer = SignedGradients(model.backbone, [n for n, _ in model.backbone.named_parameters() if "head" not in n])
    losses = []
    with scorer:
        for i in range(0, len(part["label"]), size):
            images = torch.cat([part["view1"][i : i + size], part["view2"][i : i + size]])
            loss = model.score_loss(as_batch(images, part["label"][i : i + size].long()))
            losses.append(loss.detach())
            loss.backward()
    torch.testing.assert_close(torch.stack(losses), part["supcon_loss"], atol=1e-5, rtol=0)
    expected = {n.removeprefix("grad."): t for n, t in part.items() if n.startswith("grad.")}
    for name, gradient in expected.items():
        assert (scorer.sums[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name

    stored = {name: expected[name] for name in model.score_targets()}
    ks = sorted({int(n.split(".")[1][1:]) for n in tensors if n.startswith("mask.k")})
    for k in ks:
        model.gps_k = k
        found = masks(model, model.select(stored))
        for name, mask in golden.part(f"mask.k{k}").items():
            if name != "count_no_head":
                assert torch.equal(found[name].bool(), mask.bool()), (k, name)
        no_head = sum(int(mask.sum()) for name, mask in found.items() if not name.startswith("head"))
        assert no_head == int(tensors[f"mask.k{k}.count_no_head"])

    model.gps_k = max(ks)
    model.selection = model.select(stored)
    model.configure_model()
    golden.check_logits(model)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    trained = golden.part("train")
    for step, expected_loss in enumerate(trained["loss"]):
        loss = F.cross_entropy(model(tensors["input"]), tensors["label"].long())
        torch.testing.assert_close(loss.detach(), expected_loss, atol=1e-5, rtol=0)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            check_masked_gradients(model, golden.part("train.masked_grad"))
        optimizer.step()
    torch.testing.assert_close(model(tensors["input"]), trained["logits_after"], atol=1e-5, rtol=0)
    merged, before = model.merge(), golden.plain_backbone().state_dict()
    golden.check_merge(model)
    for name, delta in golden.part("train.delta").items():
        difference = merged.state_dict()[name] - before[name] - delta
        if name.endswith("attn.qkv.bias"):  # the key bias has no true gradient, and Adam makes steps of the noise
            difference = torch.cat([difference.chunk(3)[0], difference.chunk(3)[2]])
        assert difference.abs().max() <= 1e-4, name
    assert head_parameters(model)


def check_masked_gradients(model: Any, expected: dict[str, Tensor]) -> None:
    parameters = dict(model.backbone.named_parameters())
    for name, gradient in expected.items():
        if name in model.selection:
            path, _, kind = name.rpartition(".")
            found = torch.zeros(gradient.numel())
            found[model.selection[name]] = parameters[f"{path}.{kind}_entries.values"].grad
        else:
            grad = parameters[name].grad
            found = torch.zeros(gradient.numel()) if grad is None else grad.flatten()
        torch.testing.assert_close(found, gradient.flatten(), atol=2e-5, rtol=0, msg=name)


def check_gps_in_a_fit(golden: Golden) -> None:
    """The same scores and masks as a fit makes them before its first step."""
    part = golden.part("score")
    size = int(part["batch_size"])
    views = zip(part["view1"].split(size), part["view2"].split(size), strict=True)
    batches = list(map(as_batch, map(torch.cat, views), part["label"].long().split(size)))
    for k in sorted({int(n.split(".")[1][1:]) for n in golden.tensors if n.startswith("mask.k")}):
        model: Any = golden.build("gps", gps_k=k)
        for name, score in score_in_a_fit(model, batches).items():
            gradient = part[f"grad.{name}"]
            assert (score - gradient).norm() <= 1e-4 * gradient.norm(), name
        for name, mask in masks(model, model.selection).items():
            assert torch.equal(mask.bool(), golden.tensors[f"mask.k{k}.{name}"].bool()), (k, name)


def check(golden: Golden) -> None:
    check_gps(golden)
    check_gps_in_a_fit(golden)


GOLDEN = {"gps": check}


@pytest.mark.parametrize(
    "select", ["per_neuron", "per_tensor", "global", "random", "magnitude", "per_neuron_magnitude"]
)
def test_every_selection_has_the_same_size(select: str, build: Any) -> None:
    model = build("gps", gps_select=select, gps_k=2)
    selection = model.select(scores(model))
    rows = sum(len(model.backbone.get_parameter(name)) for name in model.score_targets())
    assert sum(len(indices) for indices in selection.values()) == 2 * rows
    assert all((indices.diff() > 0).all() for indices in selection.values())


def test_the_largest_weights_of_each_neuron_need_no_data(build: Any) -> None:
    model = build("gps", gps_select="per_neuron_magnitude", gps_k=2)
    with model.build_scorer() as scorer:
        assert not scorer.needs_data
        selection = model.select(scorer.sums)
    weight = model.backbone.blocks[0].mlp.fc1.weight
    rows = selection["blocks.0.mlp.fc1.weight"].view(-1, 2).long() % weight.shape[1]
    assert torch.equal(rows, weight.abs().topk(2, dim=1).indices.sort(1).values)


def test_masks_are_nested_and_blind_to_the_scale_of_the_loss(build: Any) -> None:
    small, large = build("gps", gps_k=1), build("gps", gps_k=3)
    made = scores(small)
    for name, indices in small.select(made).items():
        assert set(indices.tolist()) <= set(large.select(made)[name].tolist())
        assert torch.equal(indices, small.select({n: 1e-6 * t for n, t in made.items()})[name])


def test_contrastive_loss_needs_positives() -> None:
    with pytest.raises(ValueError, match="two views of an image"):
        supervised_contrastive(torch.randn(2, 4), torch.tensor([0, 1]), 0.07)


@pytest.mark.parametrize("options", [{"gps_k": 0}, {"gps_temperature": 0.0}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        random_tiny("gps", **options)


def test_only_the_chosen_entries_move(build: Any, data: Any, trainer: Any) -> None:
    """Also under weight decay: the entries beside the chosen ones are bit for bit those of the backbone."""
    model = build("gps", weight_decay=0.5, optimizer="adamw", lr=0.1)
    before = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}
    trainer(max_epochs=1).fit(model, datamodule=data())
    merged: PEFTMethod = model.merge()
    for name, indices in model.selection.items():
        after = merged.get_parameter(name).flatten()
        rest = torch.ones(after.numel(), dtype=torch.bool)
        rest[indices] = False
        assert torch.equal(after[rest], before[name].flatten()[rest])
        assert not torch.equal(after[indices], before[name].flatten()[indices])


SMALL: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3},
    "swin_tiny_patch4_window7_224": {"img_size": 32, "window_size": 4, "embed_dim": 12, "depths": (1, 1)},
    "swinv2_tiny_window8_256": {"img_size": 32, "window_size": 4, "embed_dim": 12, "depths": (1, 1)},
    "convnext_tiny": {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 16)},
}


@pytest.mark.parametrize("backbone", SMALL)
def test_every_backbone(backbone: str, build: Any) -> None:
    """All that was chosen trains, also where attention reads the bare weight of its qkv."""
    args = SMALL[backbone] | ({"num_heads": (2, 2)} if "swin" in backbone else {})
    model = build("gps", backbone=backbone, backbone_args=args, pretrained=False)
    model.selection = model.select(scores(model))
    model.configure_model()
    images = torch.randn(2, 3, 32, 32)
    model.loss(as_batch(images, torch.tensor([0, 1]))).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    with torch.no_grad():
        assert torch.equal(model.merge()(images), model.eval()(images))
