"""Methods that are computed from the features of all training images."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from callbacks.ema import EMA
from callbacks.features.cache import FeatureCache
from datamodules import ImageDataset
from lightning_modules.classification import Classification
from methods import METHODS, PEFTMethod, compose
from methods.core.closed_form import ClosedForm
from methods.core.parallel_settings import ParallelSettings
from tests.conftest import BACKBONE, TINY

Build = Callable[..., PEFTMethod]
Data = Callable[..., ImageDataset]
CLOSED = [name for name, method in METHODS.items() if issubclass(method, ClosedForm)]


def read_by(model: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Features and classes that a model is computed from, after its fit."""
    found: dict[str, torch.Tensor] = {}
    compute = model.compute

    def keep(features: torch.Tensor, labels: torch.Tensor) -> None:
        found.update(features=features, labels=labels)
        compute(features, labels)

    monkeypatch.setattr(model, "compute", keep)
    return found


def test_a_fit_reads_each_image_once_as_in_a_test(
    build: Build, data: Data, trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Without augmentation, dropped paths and left out images: 24 images in batches of 7."""
    model: Any = build("nearest_mean", drop_path=0.5)
    found = read_by(model, monkeypatch)
    fit = trainer(max_epochs=5)
    read = data(batch_size=32, eval_batch_size=7, augmentation="rrc", random_erasing=1.0, sampling="balanced")
    fit.fit(model, datamodule=read)
    assert "without data.augmentation=rrc, data.random_erasing=1.0" in capsys.readouterr().out
    assert (fit.current_epoch, fit.global_step) == (1, 1)
    assert read.description()["augmentation"] == "none"
    assert found["labels"].bincount().tolist() == [8, 8, 8]
    model.eval()
    dataset = read.splits["train"]
    with torch.no_grad():
        for index in (0, 7, 23):
            inputs = read.on_device(read.collate([dataset[index]])).inputs
            torch.testing.assert_close(found["features"][index], model.frozen_features(inputs)[0][0])


@pytest.mark.parametrize("method", CLOSED)
def test_cached_features(method: str, build: Build, data: Data, trainer: Callable[..., Any]) -> None:
    deltas = []
    for callbacks in ([], [FeatureCache("ram")]):
        model = build(method)
        trainer(callbacks=callbacks).fit(model, datamodule=data(eval_batch_size=4))
        deltas.append(model.delta_state_dict())
    for name, tensor in deltas[0].items():
        torch.testing.assert_close(tensor, deltas[1][name])


def test_refusals(build: Build, data: Data, trainer: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"ema.decay averages over steps, and KNN has none; leave it out"):
        trainer(callbacks=[EMA(0.9)]).fit(build("knn"), datamodule=data())
    with pytest.raises(ValueError, match="head_batch_norm: KNN is computed from the training images alone"):
        build("knn", head_batch_norm=True)
    with pytest.raises(ValueError, match="init_from: NearestMean is computed from the training images alone"):
        build("nearest_mean", init_from="other")
    with pytest.raises(ValueError, match=r"members need gradients, and KNN is computed in one pass"):
        ParallelSettings(build("knn"), {"knn_k": [1, 5]})
    lora: Any = compose(METHODS["lora"], METHODS["knn"], task=Classification)
    with pytest.raises(ValueError, match=r"LoRA\+KNN: a method that is computed in one pass stands alone; give one"):
        lora(backbone=BACKBONE, backbone_args=TINY, pretrained=False, num_classes=3).adapt_before_data()
