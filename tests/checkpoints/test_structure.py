"""Entries of checkpoints: what is missing or of another type is named."""

from typing import Any

import pytest
import torch

from checkpoints.fingerprint import manifest
from checkpoints.structure import check_entries, check_tensors, check_version, with_prefix


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
