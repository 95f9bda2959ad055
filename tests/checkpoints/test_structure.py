"""Entries of checkpoints: what is missing or of another type is named."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from checkpoints.fingerprint import manifest
from checkpoints.structure import check_entries, check_resumable, check_tensors, check_version, with_prefix
from datamodules import ImageDataset
from methods import PEFTMethod


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({}, "it has no 'file/a', where a mapping is expected"),
        ({"a": None}, "its 'file/a' is None; expected a mapping"),
        ({"a": {}}, "it has no 'file/a/b', where a whole number or none is expected"),
        ({"a": {"b": True}}, "its 'file/a/b' is True; expected a whole number or none"),
        ({"a": {"b": "x" * 500}}, r"its 'file/a/b' is 'x{59}\.\.\.; expected"),
        ({"a": {"b": torch.zeros(2, 3)}}, r"is a tensor \(2, 3\) of torch\.float32; expected"),
    ],
)
def test_wrong_entries(found: dict[str, Any], message: str) -> None:
    entries: dict[str, Any] = {"a": dict, "a/b": (int, type(None))}
    check_entries({"a": {"b": None}, "more": 1}, entries)
    check_entries({"a": {"b": 3}}, entries)
    with pytest.raises(ValueError, match=message):
        check_entries(found, entries, "file/")


STATE = {"scale": torch.arange(3.0)}
SELECTION = {"weight": torch.tensor([1, 2])}


def listed(**change: Any) -> dict[str, Any]:
    """Checkpoint whose manifest lists hashes."""
    peft = {"selection": SELECTION, "manifest": manifest(STATE | with_prefix(SELECTION))}
    return {"state_dict": STATE, "peft": peft} | change


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"scale": torch.tensor([0.0, 1.0, 2.0000002])},
            "it is damaged: scale has another sha256 than in the manifest",
        ),
        ({"scale": torch.arange(3)}, "scale has another dtype"),
        ({}, "it lacks scale"),
        (STATE | {"shift": torch.zeros(1)}, "shift is not in the manifest"),
    ],
)
def test_tensors_are_those_of_the_manifest(state: dict[str, Any], message: str) -> None:
    check_tensors(listed())
    with pytest.raises(ValueError, match=message):
        check_tensors(listed(state_dict=state))


def test_the_manifest_lists_the_selection() -> None:
    checkpoint = listed()
    checkpoint["peft"] = checkpoint["peft"] | {"selection": {"weight": torch.tensor([1, 3])}}
    with pytest.raises(ValueError, match=r"selection/weight has another sha256"):
        check_tensors(checkpoint)


@pytest.fixture(scope="module")
def resumable(images: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What Lightning saves after two steps."""
    from tests.conftest import build_tiny, quiet_trainer

    folder = tmp_path_factory.mktemp("resumable")
    fit = quiet_trainer(folder, max_steps=2)
    fit.fit(build_tiny(weights, "ssf"), datamodule=ImageDataset(root=str(images), batch_size=4, resize="direct"))
    fit.save_checkpoint(folder / "model.ckpt")
    checkpoint: dict[str, Any] = torch.load(folder / "model.ckpt", weights_only=True)
    return checkpoint


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "it has no 'optimizer_states'": lambda c: c.pop("optimizer_states"),
    "its 'optimizer_states' is empty": lambda c: c.update(optimizer_states=[]),
    "its optimizer has no state after 2 steps": lambda c: c["optimizer_states"][0].update(state={}),
    "its 'optimizer_states/0' is None; expected a mapping": lambda c: c.update(optimizer_states=[None]),
    "it has no 'optimizer_states/0/param_groups'": lambda c: c["optimizer_states"][0].pop("param_groups"),
    "it has no 'lr_schedulers'": lambda c: c.pop("lr_schedulers"),
    "its 'epoch' is '1'; expected a whole number": lambda c: c.update(epoch="1"),
    "it has no 'global_step'": lambda c: c.pop("global_step"),
    "it has no 'callbacks'": lambda c: c.pop("callbacks"),
    "it has no 'loops'": lambda c: c.pop("loops"),
    "it has no 'loops/fit_loop'": lambda c: c["loops"].pop("fit_loop"),
    "its 'loops/fit_loop/epoch_progress/current/ready' is 'x'": lambda c: c["loops"]["fit_loop"]["epoch_progress"][
        "current"
    ].update(ready="x"),
}


@pytest.mark.parametrize("message", CHANGES)
def test_no_fit_goes_on_from_half_a_state(message: str, resumable: dict[str, Any]) -> None:
    check_resumable(resumable)
    changed = copy.deepcopy(resumable)
    CHANGES[message](changed)
    with pytest.raises(ValueError, match=f"no fit can go on from it: {message}.*--model.init_from PATH"):
        check_resumable(changed)


def test_a_fit_in_a_notebook_does_not_go_on_without_an_optimizer(
    resumable: dict[str, Any],
    build: Callable[..., PEFTMethod],
    data: Callable[..., ImageDataset],
    trainer: Callable[..., Trainer],
    tmp_path: Path,
) -> None:
    torch.save(resumable | {"optimizer_states": []}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="no fit can go on from it: its 'optimizer_states' is empty"):
        trainer(max_epochs=2).fit(build("ssf"), datamodule=data(), ckpt_path=tmp_path / "model.ckpt")
    tested = trainer().test(build("ssf"), datamodule=data(), ckpt_path=tmp_path / "model.ckpt", verbose=False)
    assert "test/acc1" in tested[0], "an evaluation needs no optimizer"


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ({}, "it has no 'pytorch-lightning_version', where a text is expected"),
        ({"pytorch-lightning_version": 2}, "is 2; expected a text"),
        ({"pytorch-lightning_version": "two"}, "is 'two'; expected a version such as 2.6.0"),
    ],
)
def test_versions_that_lightning_cannot_read(checkpoint: dict[str, Any], message: str) -> None:
    check_version({"pytorch-lightning_version": "2.6.6"})
    with pytest.raises(ValueError, match=message):
        check_version(checkpoint)
