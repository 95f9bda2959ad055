"""Losses and metrics against numbers counted by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from lightning import Trainer
from torch import Tensor
from torch.nn import functional as F

from checkpoints.delta import read_checkpoint, write_adapter
from datamodules import ImageDataset
from lightning_modules.batch import Batch
from lightning_modules.named_classes import check_classes
from lightning_modules.task import Task
from methods import PEFTMethod
from tests.conftest import BACKBONE, TINY
from tests.support.batches import as_batch

Build = Callable[..., PEFTMethod]
Data = Callable[..., ImageDataset]
MakeTrainer = Callable[..., Trainer]
# a tiny model, for the contract of tasks
OPTIONS: dict[str, Any] = {"backbone": BACKBONE, "backbone_args": TINY, "pretrained": False, "num_classes": 3}


def batch(size: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(3)
    return Batch.of(torch.randn(size, 3, 32, 32, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2])[:size])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_label_smoothing(smoothing: float, build: Build) -> None:
    model: Any = build("linear_probe", label_smoothing=smoothing).eval()
    images, labels, _ = batch()
    logs = model(images).log_softmax(dim=1)
    right = logs[range(6), labels]
    by_hand = -((1 - smoothing) * right + smoothing * logs.mean(dim=1)).mean()
    torch.testing.assert_close(model.loss(as_batch(images, labels)), by_hand)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_targets(kind: str, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = build("linear_probe", label_smoothing=0.3, **{kind: 1.0}).train()
    images, labels, _ = batch()
    seen: dict[str, Tensor] = {}
    forward, cross_entropy = model.forward, F.cross_entropy
    monkeypatch.setattr(model, "forward", lambda x: forward(seen.setdefault("images", x)))
    monkeypatch.setattr(F, "cross_entropy", lambda x, y, *_, **__: cross_entropy(x, seen.setdefault("targets", y)))
    np.random.seed(7)
    loss = model.loss(as_batch(images.clone(), labels))

    # the partner of an image is the one at the mirrored place of the batch
    if kind == "mixup":
        share = ((seen["images"] - images.flip(0)) / (images - images.flip(0))).median()
        torch.testing.assert_close(seen["images"], share * images + (1 - share) * images.flip(0))
    else:
        own = (seen["images"] == images).all(dim=1)
        assert torch.equal(torch.where(own[:, None], images, images.flip(0)), seen["images"])
        share = own[0].float().mean()
    assert 0.01 < share < 0.99
    smooth = torch.full((6, 3), 0.1)
    smooth[range(6), labels] += 0.7
    torch.testing.assert_close(seen["targets"], share * smooth + (1 - share) * smooth.flip(0), atol=1e-5, rtol=0)
    by_hand = -(seen["targets"] * model(seen["images"]).log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(loss, by_hand)


def test_mixup_in_training_alone(build: Build) -> None:
    mixed: Any = build("linear_probe", mixup=0.8, cutmix=1.0).eval()
    plain: Any = build("linear_probe").eval()
    assert torch.equal(mixed.loss(batch()), plain.loss(batch()))


def test_mixup_with_an_odd_batch(build: Build) -> None:
    model: Any = build("linear_probe", mixup=0.8).train()
    seen: list[Tensor] = []
    forward = model.forward
    model.forward = lambda x: seen.append(x) or forward(x)
    images, labels, _ = batch(5)
    assert model.loss(as_batch(images.clone(), labels)).isfinite()
    assert len(seen[0]) == 5
    torch.testing.assert_close(seen[0][0], images[0], msg="the odd one is mixed with itself")
    assert not torch.equal(seen[0][1:], images[1:])


def test_data_may_change_mixed_images(
    build: Build, data: Data, trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After mixup the labels are soft (B, K)."""
    module, seen = data(), []
    monkeypatch.setattr(module, "after_mixing", lambda batch: seen.append(tuple(batch.targets.shape)) or batch)
    trainer(limit_train_batches=1).fit(build("linear_probe", mixup=0.8), datamodule=module)
    assert seen == [(4, 3)]


def metrics_of(model: Any, batches: list[tuple[list[list[float]], list[int | None]]]) -> dict[str, float]:
    """Final metrics of logits and labels given directly; a label None marks a row that only evens out the ranks."""
    model.forward = lambda logits: logits
    for logits, labels in batches:
        targets = torch.tensor([label or 0 for label in labels])
        model.validation_step(as_batch(torch.tensor(logits), targets, [label is not None for label in labels]), 0)
    return {name: float(value) for name, value in model.val_metrics.compute().items()}


def test_metrics_by_hand(build: Build) -> None:
    a, b, c = [9.0, 1.0, 0.0], [1.0, 9.0, 0.0], [0.0, 1.0, 9.0]
    logits, labels = [[a, a, b, c], [b, c, a, a], [c, c]], [[0, 0, 0, 0], [1, 0, None, None], [2, None]]
    values = metrics_of(build("linear_probe"), list(zip(logits, labels, strict=True)))
    assert values["val/acc1"] == pytest.approx(4 / 7)  # a a of class 0, b of class 1, c of class 2
    assert values["val/mean_class_acc"] == pytest.approx((2 / 5 + 1 + 1) / 3)
    log = {name: torch.tensor(row).log_softmax(dim=0).tolist() for name, row in {"a": a, "b": b, "c": c}.items()}
    losses = [log["a"][0], log["a"][0], log["b"][0], log["c"][0], log["b"][1], log["c"][0], log["c"][2]]
    assert values["val/loss"] == pytest.approx(-sum(losses) / 7)
    assert "val/acc5" not in values  # of 3 classes it is always 1


def test_top_five_by_hand(build: Build) -> None:
    descending = [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    values = metrics_of(build("linear_probe", num_classes=7), [([descending] * 4, [0, 4, 5, None])])
    assert values["val/acc1"] == pytest.approx(1 / 3)
    assert values["val/acc5"] == pytest.approx(2 / 3)


def test_nothing_but_padding_in_a_batch(build: Build) -> None:
    a = [9.0, 1.0, 0.0]
    values = metrics_of(build("linear_probe"), [([a, a], [0, 1]), ([a, a], [None, None])])
    assert values["val/acc1"] == 0.5
    assert values["val/loss"] < 10


def test_metrics_start_anew_each_epoch(build: Build, data: Data, trainer: MakeTrainer) -> None:
    model: Any = build("linear_probe")
    run = trainer()
    run.validate(model, datamodule=data(), verbose=False)
    tested = run.test(model, datamodule=data(eval_batch_size=3), verbose=False)[0]
    assert tested["test/acc1"] * 15 == pytest.approx(round(tested["test/acc1"] * 15))
    assert tested == pytest.approx(run.test(model, datamodule=data(eval_batch_size=15), verbose=False)[0], abs=1e-6)
    kept = [*model.val_metrics.values(), *model.test_metrics.values()]
    assert [metric.update_count for metric in kept] == [0] * 6


def test_predictions_are_probabilities(build: Build) -> None:
    model: Any = build("linear_probe").eval()
    probabilities = model.predict_step(batch(), 0)
    torch.testing.assert_close(probabilities, model(batch().inputs).softmax(dim=1))


@pytest.mark.parametrize("num_classes", [0, 1])
def test_one_class_is_no_task(num_classes: int, build: Build) -> None:
    with pytest.raises(ValueError, match=f"num_classes={num_classes}: expected at least 2"):
        build("linear_probe", num_classes=num_classes)


def test_example_batch(build: Build) -> None:
    model: Any = build("linear_probe").eval()
    example = model.example_batch()
    assert model(example.inputs).shape == (1, 3)
    assert model.loss(example).isfinite()
    assert (example.size, example.valid.tolist()) == (1, [True])


def test_identity(build: Build) -> None:
    """A checkpoint brings the names of its classes; other names are refused."""
    model: Any = build("linear_probe")
    model.adopt({"class_names": ["a", "b", "c"]})
    assert model.identity() == {"class_names": ["a", "b", "c"]}
    model.adopt({})  # without a trained order nothing is compared
    assert model.identity() == {"class_names": []}
    with pytest.raises(ValueError, match="other classes than the checkpoint: , a, b in the data, b, a in the"):
        check_classes(["", "a", "b"], ["b", "a"])


def test_drop_path_reaches_the_last_block(build: Build) -> None:
    model = build("linear_probe", drop_path=0.3)
    assert [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.backbone.blocks] == pytest.approx([0.0, 0.3])


# classes of the data against those of a checkpoint


@pytest.fixture
def checkpoint(build: Build, data: Data, trainer: MakeTrainer, tmp_path: Path) -> Path:
    """Of a short fit; an adapter folder of the same content lies beside it."""
    run = trainer(max_steps=1, limit_val_batches=0)
    run.fit(build("linear_probe"), datamodule=data())
    run.save_checkpoint(tmp_path / "model.ckpt")
    write_adapter(tmp_path / "adapter", read_checkpoint(tmp_path / "model.ckpt"))
    return tmp_path / "model.ckpt"


@pytest.fixture
def reordered(monkeypatch: pytest.MonkeyPatch) -> str:
    """The data have their classes in another order; the message about it."""
    monkeypatch.setattr(ImageDataset, "class_names", ["tulip", "daisy", "rose"])
    return "other classes than the checkpoint: tulip, daisy, rose in the data, daisy, rose, tulip in the"


def test_class_names_are_saved(checkpoint: Path) -> None:
    model: Any = PEFTMethod.load_from_checkpoint(checkpoint)
    assert model.class_names == ["daisy", "rose", "tulip"]
    model = PEFTMethod.from_delta(checkpoint.parent / "adapter")
    assert model.class_names == ["daisy", "rose", "tulip"]


@pytest.mark.parametrize("command", ["test", "predict", "fit"])
def test_other_class_order_in_a_checkpoint(
    command: str, checkpoint: Path, build: Build, data: Data, trainer: MakeTrainer, reordered: str
) -> None:
    with pytest.raises(ValueError, match=reordered):
        getattr(trainer(), command)(build("linear_probe"), datamodule=data(), ckpt_path=checkpoint)


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_other_class_order_in_an_adapter_folder(
    command: str, checkpoint: Path, data: Data, trainer: MakeTrainer, reordered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = PEFTMethod.from_delta(checkpoint.parent / "adapter")
    with pytest.raises(ValueError, match=reordered):
        getattr(trainer(), command)(model, datamodule=data())
    monkeypatch.undo()
    getattr(trainer(), command)(model, datamodule=data())


def test_export(build: Build, tmp_path: Path) -> None:
    """A plain timm model with the names of its classes, which timm loads alone."""
    model: Any = build("linear_probe").eval()
    model.adopt({"class_names": ["a", "b", "c"]})
    model.export(model.backbone, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["label_names"] == ["a", "b", "c"]
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
    with pytest.raises(TypeError, match="LinearProbeClassification has no form of its library"):
        Task.export(model, model.backbone, tmp_path)
