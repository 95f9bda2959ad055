"""Entries that a checkpoint must have, with their types; tensors must be those of the manifest."""

from collections.abc import Mapping
from typing import Any

import torch
from packaging.version import InvalidVersion, Version
from torch import Tensor

from checkpoints.fingerprint import manifest

Types = type | tuple[type, ...]
NAMES: dict[type, str] = {
    dict: "a mapping",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Tensor: "a tensor",
    type(None): "none",
}
# names of nested entries are joined by "/"; an entry stands behind the one that contains it
BEGINNING: dict[str, Types] = {"peft": dict, "hyper_parameters": dict, "hyper_parameters/_class_path": str}
MODEL: dict[str, Types] = BEGINNING | {
    "state_dict": dict,
    "identity": dict,
    "peft/format": int,
    "peft/method": str,
    "peft/backbone": str,
    "peft/fingerprint": str,
    "peft/manifest": dict,
    "peft/selection": (dict, type(None)),
}
TENSOR: dict[str, Types] = {"dtype": str, "shape": list}


def check_entries(found: Mapping[str, Any], entries: Mapping[str, Types], where: str = "") -> None:
    """Refuse a mapping without some entries, or with entries of other types.

    Args:
        found: The mapping.
        entries: Types by name.
        where: Place of the mapping in its file, for messages.

    Raises:
        ValueError: With the first entry that is wrong.
    """
    for path, types in entries.items():
        *folders, name = path.split("/")
        parent: Any = found
        for folder in folders:
            parent = parent[folder]
        types = types if isinstance(types, tuple) else (types,)
        expected = " or ".join(NAMES[kind] for kind in types)
        if name not in parent:
            raise ValueError(f"it has no {where + path!r}, where {expected} is expected")
        value = parent[name]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ValueError(f"its {where + path!r} is {shown(value)}; expected {expected}")


def shown(value: Any) -> str:
    """A value for a message, cut after 60 characters."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def check_model(checkpoint: Mapping[str, Any]) -> None:
    """Refuse a checkpoint, in the current format, that describes no model.

    Raises:
        ValueError: If an entry is missing or has another type.
    """
    check_entries(checkpoint, MODEL)
    selection = checkpoint["peft"]["selection"] or {}
    for place, tensors in {"state_dict": checkpoint["state_dict"], "peft/selection": selection}.items():
        for name, tensor in tensors.items():
            if not isinstance(name, str) or not is_stored(tensor):
                raise ValueError(f"its '{place}/{name}' is {shown(tensor)}; expected a stored tensor")
    for name, entry in checkpoint["peft"]["manifest"].items():
        if not isinstance(entry, dict):
            raise ValueError(f"its manifest has {shown(entry)} for {name}; expected a mapping")
        check_entries(entry, TENSOR, f"peft/manifest/{name}/")


def is_stored(value: Any) -> bool:
    """Whether a value is a dense tensor that is not larger than its bytes in the file."""
    dense = isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta
    return dense and value.nbytes <= value.untyped_storage().nbytes()


def check_tensors(checkpoint: Mapping[str, Any]) -> None:
    """Refuse tensors that differ from the manifest in name, type, shape or hash.

    A manifest of before December 2026 lists neither hashes nor the selection.

    Args:
        checkpoint: A checkpoint that ``check_model`` accepts.

    Raises:
        ValueError: With the first tensor that differs.
    """
    listed, state, selection = checkpoint["peft"]["manifest"], checkpoint["state_dict"], checkpoint["peft"]["selection"]
    hashed = any("sha256" in entry for entry in listed.values())
    tensors = {**state, **(with_prefix(selection) if hashed else {})}
    if tensors.keys() != listed.keys():
        lost, more = sorted(listed.keys() - tensors.keys()), sorted(tensors.keys() - listed.keys())
        reason = f"it lacks {lost[0]}" if lost else f"{more[0]} is not in the manifest"
        raise ValueError(f"its tensors are not those of its manifest: {reason}")
    for name, found in manifest(tensors).items():
        if not hashed:
            del found["sha256"]
        different = [key for key, value in found.items() if listed[name].get(key) != value]
        if different:
            raise ValueError(f"it is damaged: {name} has another {different[0]} than in the manifest")


def with_prefix(selection: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Tensors of a selection by their names in a manifest and in an adapter folder."""
    return {f"selection/{name}": tensor for name, tensor in (selection or {}).items()}


def check_version(checkpoint: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that Lightning cannot read, because it does not name the version that wrote it.

    Raises:
        ValueError: If there is no version, or it is none.
    """
    name = "pytorch-lightning_version"
    check_entries(checkpoint, {name: str})
    try:
        Version(checkpoint[name])
    except InvalidVersion as error:
        raise ValueError(f"its {name!r} is {shown(checkpoint[name])}; expected a version such as 2.6.0") from error
