"""BitFit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_modules.classification import Classification
from methods import PEFTMethod, compose
from methods.bitfit import BitFit

Build = Callable[..., PEFTMethod]

COUNTS = {
    "vit_base_patch16_224": 102_912,
    "swin_base_patch4_window7_224": 137_216,
    "convnext_base": 130_304,
}
IDENTITY: dict[str, Any] | None = {}


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "convnext_atto"])
def test_without_the_biases_of_norms(backbone: str) -> None:
    model = compose(BitFit, task=Classification)(backbone=backbone, pretrained=False, num_classes=3, bitfit_norm=False)
    model.configure_model()
    head = tuple(model.head_names)
    trained = {n for n, p in model.backbone.named_parameters() if p.requires_grad and not n.startswith(head)}
    layers = {n: m for n, m in model.backbone.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))}
    assert trained == {f"{name}.bias" for name in layers if name not in head}


def test_rate_of_the_biases(build: Build) -> None:
    model = build("bitfit", lr=0.1, bitfit_lr_scale=5.0, weight_decay=0.5)
    model.configure_model()
    names = {id(p): name.removeprefix("backbone.") for name, p in model.named_parameters()}
    rates = {names[id(p)]: g.get("lr", 0.1) for g in model.param_groups() for p in g["params"]}
    assert {rates.pop("head.weight"), rates.pop("head.bias")} == {0.1}
    assert set(rates.values()) == {0.5}
    with pytest.raises(ValueError, match=r"bitfit_lr_scale=0.0: expected a positive factor"):
        build("bitfit", bitfit_lr_scale=0.0)
