"""Checkpoints of the delta: what they hold, and from what they load."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints import delta as files
from checkpoints.delta import read_checkpoint, write_adapter
from methods import PEFTMethod
from tests.conftest import checkpoint_of, perturb

Build = Callable[..., PEFTMethod]


@pytest.fixture
def trained(build: Build) -> PEFTMethod:
    model = build("ssf")
    model.configure_model()
    perturb(model)
    return model.eval()


def test_content(trained: PEFTMethod) -> None:
    checkpoint = checkpoint_of(trained)
    assert checkpoint["peft"]["format"] == files.FORMAT == 2
    assert checkpoint["peft"]["counts"] == trained.parameter_counts()
    assert checkpoint["identity"] == trained.identity()
    assert checkpoint["state_dict"].keys() == trained.delta_state_dict().keys()
    assert checkpoint["hyper_parameters"]["_class_path"] == "methods.SSFClassification"
    assert not {"init_from", "init_head", "init_other_backbone"} & checkpoint["hyper_parameters"].keys()


def test_a_file_is_read_once(trained: PEFTMethod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``read_checkpoint`` returned is handed on, and can be used twice."""
    write_adapter(tmp_path, checkpoint_of(trained))
    read = read_checkpoint(tmp_path)
    monkeypatch.setattr(files, "read_checkpoint", lambda *_: pytest.fail("read again"))
    images = torch.randn(2, 3, 32, 32)
    for _ in range(2):
        again = PEFTMethod.from_delta(read)
        with torch.no_grad():
            assert torch.equal(again(images), trained(images))


def test_load_into_a_model(trained: PEFTMethod, build: Build, tmp_path: Path) -> None:
    write_adapter(tmp_path, checkpoint_of(trained))
    other = build("ssf").eval()
    other.load_delta(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(other(images), trained(images))


def test_files_of_other_projects_are_refused(build: Build) -> None:
    with pytest.raises(ValueError, match="not one of this project: it has no 'peft' entry"):
        build("ssf").on_load_checkpoint({"state_dict": {}})


@pytest.mark.parametrize(("stack", "name"), [("ssf", "SSF"), ("lora+velora", "LoRA+VeLoRA"), ("gps", "GPS")])
def test_method_name(stack: str, name: str, build: Build) -> None:
    assert build(stack).method_name() == name


def test_method_options(build: Build) -> None:
    """Those that the methods of a stack declare; neither the task's nor those of starting from another run."""
    options: dict[str, Any] = type(build("ssf")).method_options()
    assert options == {"ssf_init": "normal", "ssf_std": 0.02, "ssf_downsample": False, "ssf_head_norm": True}


@pytest.mark.parametrize("same", [True, False])
def test_a_backbone_is_built_anew_for_another_selection_alone(same: bool, build: Build) -> None:
    """Random weights cannot be built twice, so a test after a fit loads its best epoch into the model of the fit."""

    def selection(column: int) -> dict[str, torch.Tensor]:
        return {"blocks.0.mlp.fc1.weight": torch.tensor([[column]], dtype=torch.int32)}

    model = build("gps")
    model.selection = selection(3)
    model.configure_model()
    checkpoint, backbone = checkpoint_of(model), model.backbone
    model.selection = selection(3 if same else 4)
    model.on_load_checkpoint(checkpoint)
    assert (model.backbone is backbone) == same
