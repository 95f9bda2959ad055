"""Activations that are computed again: equal gradients, fewer kept bytes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from callbacks.checkpoint_activations import CheckpointActivations
from callbacks.cost import Cost
from callbacks.measures import SavedBytes
from checkpoints.whole import whole
from commands.methods.families import FAMILIES
from datamodules import ImageDataset
from lightning_modules.batch import Batch
from methods import METHODS, PEFTMethod
from methods.core.sharded import Sharded
from tests.conftest import TINY, build_tiny, composed, perturb, quiet_trainer
from tests.methods.test_contract import adapt, batch
from tests.support.ranks import TwoRanks

Build = Callable[..., PEFTMethod]
Data = Callable[..., ImageDataset]
MakeTrainer = Callable[..., Trainer]
# their gradients need no activations inside the blocks of the backbone
# dtl has feedback behind the last of two blocks alone
FROZEN = ("dtl", "knn", "linear_probe", "mlp_head", "nearest_mean", "sidetune")
DROPPING = {"drop_path": 0.2, "backbone_args": TINY | {"proj_drop_rate": 0.1}}
RESNET = {
    "backbone": "resnet10t",
    "backbone_args": {"channels": (8, 8, 16, 16), "stem_width": 8, "zero_init_last": False},
    "pretrained": False,
}


def step(model: PEFTMethod, enabled: bool, inputs: Batch) -> tuple[int, dict[str, torch.Tensor]]:
    """Kept bytes of a training step, and its gradients."""
    model.recompute(enabled)
    torch.manual_seed(1)
    with SavedBytes(model) as saved:
        loss = model.loss(inputs)
    loss.backward()
    return saved.bytes, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_equal_and_less_is_kept(method: str, build: Build) -> None:
    results = []
    for enabled in (False, True):
        model = build(method, **DROPPING)
        adapt(method, model)
        perturb(model)
        results.append(step(model.train(), enabled, batch()))
    (before, plain), (after, gradients) = results
    assert plain.keys() == gradients.keys()
    for name, gradient in plain.items():
        assert torch.equal(gradients[name], gradient), name
    assert (after < before) == (method not in FROZEN)


@pytest.mark.parametrize("method", FROZEN)
def test_frozen_backbones_are_refused(method: str, build: Build, data: Data, trainer: MakeTrainer) -> None:
    run = trainer(callbacks=[CheckpointActivations(True)])
    with pytest.raises(ValueError, match=r"need no activations inside the blocks of VisionTransformer.*; leave it out"):
        run.fit(build(method), datamodule=data())


def fit_in_shards(rank: int, images: Path, weights: Path, folder: Path) -> list[dict[str, Any]]:
    deltas = []
    for active in (False, True):
        model = build_tiny(weights, "lora", drop_path=0.2)
        callbacks = [CheckpointActivations(active)]
        run = quiet_trainer(
            folder, devices=2, strategy=Sharded(), callbacks=callbacks, max_steps=3, limit_val_batches=0
        )
        run.fit(model, datamodule=ImageDataset(root=str(images), batch_size=4, resize="direct"))
        deltas.append(whole(model.delta_state_dict()))
    return deltas


def test_shards(two_ranks: TwoRanks, images: Path, weights: Path, tmp_path: Path) -> None:
    plain, delta = two_ranks(fit_in_shards, images, weights, tmp_path)[0]
    for name, tensor in plain.items():
        assert torch.equal(delta[name], tensor), name


@pytest.mark.parametrize("options", [DROPPING, RESNET], ids=["vit", "resnet"])
def test_a_fit_gives_the_same(options: dict[str, Any], build: Build, data: Data, trainer: MakeTrainer) -> None:
    """Values and statistics of BatchNorms are equal; the costs are those of the run as it is."""
    results, costs = [], []
    for active in (False, True):
        model, cost = build("full", **options), Cost()
        callbacks = [CheckpointActivations(active), cost]
        trainer(callbacks=callbacks, max_epochs=2, accumulate_grad_batches=2).fit(model, datamodule=data())
        results.append(model.state_dict())
        costs.append(cost.values["cost/saved_mib"])
        assert not getattr(model.backbone, "grad_checkpointing", False)
    for name, tensor in results[0].items():
        assert torch.equal(results[1][name], tensor), name
    assert costs[1] < 0.9 * costs[0]


@pytest.mark.matrix
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_right_or_refused(family: str) -> None:
    model_name, args, size, _ = FAMILIES[family]
    torch.manual_seed(0)
    model: Any = composed("full")(backbone=model_name, backbone_args=args, pretrained=False, num_classes=3)
    model.configure_model()
    model.train()
    images = Batch.of(torch.randn(4, 3, size, size), torch.tensor([0, 1, 2, 0]))
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    before, plain = step(model, False, images)
    model.load_state_dict(statistics, strict=False)
    model.zero_grad()
    try:
        model.recompute(True)
    except ValueError as error:
        assert "timm cannot compute blocks of" in str(error)  # noqa: PT017
        return
    after, gradients = step(model, True, images)
    for name, gradient in plain.items():
        assert torch.equal(gradients[name], gradient), name
    assert after < before


def test_networks_without_checkpoints_are_refused() -> None:
    model = composed("full")(backbone="vgg11", pretrained=False, num_classes=3)
    with pytest.raises(ValueError, match=r"checkpoint_activations: timm cannot compute blocks of VGG again.*leave it"):
        CheckpointActivations(True).check(model)
    CheckpointActivations(False).check(model)
