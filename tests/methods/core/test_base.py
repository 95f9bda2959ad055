"""The steps of adapting, in their order and with their refusals."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn

from backbones.inject import Backbone
from lightning_modules.classification import Classification
from methods import PEFTMethod
from tests.conftest import BACKBONE, TINY, random_tiny

Build = Callable[..., PEFTMethod]
OPTIONS: dict[str, Any] = {"backbone": BACKBONE, "backbone_args": TINY, "pretrained": False, "num_classes": 3}


class Probe(PEFTMethod):
    """Adds one module, trains one bias, and keeps a record of the steps."""

    names: tuple[str, ...] = ("norm.bias",)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.steps: list[str] = []

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        assert not any(p.requires_grad for p in backbone.parameters())
        self.steps.append("adapt")
        backbone.probe = nn.Linear(2, 2)

    def trainable_names(self) -> Iterable[str]:
        return self.names

    def after_adapt(self, backbone: Backbone) -> None:
        super().after_adapt(backbone)
        self.steps.append("after_adapt")
        self.trained = {name for name, p in backbone.named_parameters() if p.requires_grad}


def model(**attributes: Any) -> Any:
    cls = type("Model", (Probe, Classification), attributes)
    return cls(**OPTIONS)


def test_what_trains() -> None:
    """What ``adapt`` has created, the head, and the named parameters; all of it before ``after_adapt``."""
    built = model()
    plain = set(built.backbone.state_dict())
    built.configure_model()
    assert built.steps == ["adapt", "after_adapt"]
    assert built.trained == {"probe.weight", "probe.bias", "head.weight", "head.bias", "norm.bias"}
    assert built.plain_keys == plain
    assert built.parameter_counts() == {"method": 6 + 48, "neck": 0, "head": 3 * 49}
    assert built.total_parameters == sum(p.numel() for p in built.parameters())
    built.configure_model()  # a second call changes nothing
    assert built.steps == ["adapt", "after_adapt"]


def test_new_tensors_are_fp32_on_the_backbone_s_device() -> None:
    built = model()
    with torch.device("meta"):
        previous = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            built.configure_model()
        finally:
            torch.set_default_dtype(previous)
    weight = built.backbone.probe.weight
    assert (weight.dtype, weight.device.type) == (torch.float32, "cpu")


def test_fingerprint_is_of_frozen_weights() -> None:
    torch.manual_seed(0)
    first = model()
    torch.manual_seed(0)
    second = model()
    with torch.no_grad():
        second.backbone.head.weight += 1  # the head and what trains may differ
        second.backbone.norm.bias += 1
    third = model(names=())
    third.backbone.load_state_dict(first.backbone.state_dict())
    for built in (first, second, third):
        built.configure_model()
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != third.fingerprint  # there the bias of the norm is frozen


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Model: the backbone has no blocks\.9\.attn\.qkv\.bias"):
        model(names=("blocks.9.attn.qkv.bias",)).configure_model()


def test_parameters_without_use_stay_frozen() -> None:
    built: Any = random_tiny("full")
    built.backbone.extra = nn.Linear(2, 2)
    built.configure_model()
    frozen = {name for name, p in built.backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"extra.weight", "extra.bias"}


def test_merge_of_an_unmergeable_method() -> None:
    with pytest.raises(TypeError, match="cannot be merged because its reason"):
        model(mergeable=False, unmergeable="its reason").merge()


def test_merge_leaves_the_model_as_it_is(build: Build) -> None:
    built = build("ssf")
    built.configure_model()
    before = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    merged = built.merge()
    assert not any(p.requires_grad for p in merged.parameters())
    assert not merged.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in built.state_dict().items())


def test_compiled_backbones_are_refused(build: Build, data: Any, trainer: Any) -> None:
    built = build("ssf")
    built.backbone = torch.compile(built.backbone)
    with pytest.raises(ValueError, match=r"backbone is wrapped by torch\.compile"):
        trainer().fit(built, datamodule=data())
