"""Models that files describe: found by name, checked on the meta device, and nothing imported."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.delta import write_adapter
from lightning_modules.classification import Classification
from methods import METHODS, PEFTMethod
from methods.core import saved_model
from methods.core.saved_model import described_model, saved_class
from tests.conftest import checkpoint_of
from tests.methods.test_contract import adapt
from tests.support.facts import FACTS

Build = Callable[..., PEFTMethod]


class Own(METHODS["ssf"], Classification):  # type: ignore[misc]
    """A class of a user."""


def test_classes_by_name() -> None:
    assert saved_class("methods.SSFClassification").__name__ == "SSFClassification"
    assert saved_class("methods.VeLoRALoRAClassification").__mro__[1] is METHODS["velora"]
    assert saved_class(f"{__name__}.Own") is Own


@pytest.mark.parametrize(
    "path",
    [
        *("methods.PEFTMethod", "methods.METHODS", "methods.compose", "methods.SSF", "methods.SSFSSFClassification"),
        *("methods.SSFDetectio", "methods.", "", "antigravity.fly", "os.system", "lightning_modules.Classification"),
    ],
)
def test_other_classes_are_refused(path: str) -> None:
    before = set(sys.modules)
    with pytest.raises(ValueError, match=f"its class '{path}' is unknown; expected methods.NAME"):
        saved_class(path)
    assert set(sys.modules) == before


def described(build: Build, **options: Any) -> dict[str, Any]:
    """Checkpoint of LoRA whose options were changed afterwards."""
    model = build("lora")
    model.configure_model()
    checkpoint = checkpoint_of(model)
    checkpoint["hyper_parameters"] = checkpoint["hyper_parameters"] | options
    return checkpoint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_rankk": 4}, "its options do not fit LoRAClassification: .*'lora_rankk'"),
        ({"lr": "fast"}, "its options do not fit LoRAClassification: .*lr.*float"),
        ({"lora_rank": None}, "its options do not build its model"),
        ({"lora_rank": 10**9}, "its options do not build its model"),
        ({"lora_rank": 3}, r"does not fit the model: backbone\.blocks\.0\.attn\.qkv\.lora\.A has shape"),
        ({"num_classes": 10**9}, r"backbone\.head\.bias has shape \(3,\), expected \(1000000000,\)"),
        ({"backbone_args": {"depth": 10**8}}, "backbone_args.depth=100000000 is too large; expected at most 100,000"),
        ({"backbone_args": {"depth": 10**5}}, "it has more than 10,000 tensors"),
        ({"backbone_args": {"embed_dim": [10**30]}}, "is too large; expected at most"),
        ({"backbone_args": {"mlp_ratio": float("inf")}}, "backbone_args.mlp_ratio=inf is too large"),
        ({"backbone_args": {"class_token": "x", "foo": 1}}, "its options do not build its model: .*'foo'"),
        ({"backbone": "no_such_net"}, "its options do not build its model: .*timm has no such model"),
    ],
)
def test_wrong_options_are_refused_at_once(options: dict[str, Any], message: str, build: Build) -> None:
    checkpoint = described(build, **options)
    begin = time.monotonic()
    with pytest.raises(ValueError, match=message):
        described_model(checkpoint)
    assert time.monotonic() - begin < 20


def test_number_of_parameters(build: Build) -> None:
    """Frozen blocks have no tensors in the file, and yet their number is compared."""
    model = build("linear_probe")
    model.configure_model()
    checkpoint = checkpoint_of(model)
    described_model(checkpoint)
    checkpoint["hyper_parameters"]["backbone_args"] = {**checkpoint["hyper_parameters"]["backbone_args"], "depth": 40}
    with pytest.raises(
        ValueError, match=r"its options build a model of [\d,]+ parameters, and it was trained with \d+"
    ):
        described_model(checkpoint)


@pytest.mark.parametrize("method", FACTS)
def test_every_method_is_built_without_memory(method: str, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that could not would skip the comparison of the shapes."""
    model = build(method)
    adapt(method, model)
    checkpoint = checkpoint_of(model)
    compared: list[int] = []
    original = saved_model.check_delta
    monkeypatch.setattr(saved_model, "check_delta", lambda *parts: compared.append(1) or original(*parts))
    state = torch.get_rng_state()
    described_model(checkpoint)
    assert compared
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_that_moved_are_the_builder_s_message(build: Build, tmp_path: Path) -> None:
    model = build("ssf")
    model.configure_model()
    checkpoint = checkpoint_of(model)
    checkpoint["hyper_parameters"]["pretrained"] = str(tmp_path / "moved.safetensors")
    write_adapter(tmp_path, checkpoint)
    with pytest.raises(FileNotFoundError, match=r"moved\.safetensors': no such file\. Download"):
        PEFTMethod.from_delta(tmp_path)


def test_another_class_than_asked_for(build: Build) -> None:
    model = build("ssf")
    model.configure_model()
    with pytest.raises(ValueError, match="its class is SSFClassification; expected a LoRA"):
        METHODS["lora"].from_delta(checkpoint_of(model))
