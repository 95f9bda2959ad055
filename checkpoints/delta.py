"""File format of a trained method: checkpoint files and adapter folders with the delta only, checked key by key."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from checkpoints.atomic import tensor_bytes, write_atomically, writing
from checkpoints.fingerprint import hash_of, manifest
from checkpoints.format_1 import to_format_2
from checkpoints.packed import PACKED
from checkpoints.structure import BEGINNING, check_entries, check_model, check_tensors, shown, with_prefix

FORMAT = 2
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# entries of CONFIG; "class_names" stands for "identity" in format 1, and files of before December 2026 have no hash
ENTRIES = {"peft_type", "peft", "selected", "hyper_parameters", "identity", "class_names", "sha256"}


def check_delta(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Refuse a delta with other tensors than this model has.

    Args:
        expected: The delta of the model that loads.
        found: The delta of the file.

    Raises:
        ValueError: For a missing, extra, wrongly shaped or non-finite tensor, or integers for real numbers, by name.
    """
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"unknown {name}" for name in found if name not in expected]
    for name in expected.keys() & found.keys():
        tensor = found[name]
        if tensor.shape != expected[name].shape:
            problems.append(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}")
        elif tensor.is_floating_point() != expected[name].is_floating_point():
            problems.append(f"{name} has dtype {tensor.dtype}, expected {expected[name].dtype}")
        elif tensor.is_floating_point() and not tensor.isfinite().all():
            problems.append(f"{name} holds NaN or infinity")
    if problems:
        shown = "; ".join(sorted(problems)[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ValueError(f"this checkpoint does not fit the model: {shown}")


def check_backbone(expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Refuse a delta that was trained on other frozen weights.

    Raises:
        ValueError: If the format is unknown or the frozen weights differ.
    """
    check_format(found)
    if found["fingerprint"] != expected["fingerprint"]:
        raise ValueError(
            f"this delta was trained on other weights: {found['backbone']} (sha256 {found['fingerprint'][:12]}), "
            f"this model has {expected['backbone']} (sha256 {expected['fingerprint'][:12]}). "
            "Load the backbone that it was trained on."
        )


def check_format(found: Mapping[str, Any]) -> None:
    """Refuse a file of another format.

    Raises:
        ValueError: With its format.
    """
    if found.get("format") != FORMAT:
        raise ValueError(f"checkpoint format {found.get('format')}: this version of Graft reads format {FORMAT}")


def write_adapter(folder: Path, checkpoint: dict[str, Any]) -> None:
    """Write the delta of a checkpoint as an adapter folder (safetensors and JSON), which ``read_adapter`` reads."""
    peft = dict(checkpoint["peft"])
    selection = peft.pop("selection")
    tensors = {name: tensor.contiguous() for name, tensor in checkpoint["state_dict"].items()}
    tensors |= {name: tensor.contiguous() for name, tensor in with_prefix(selection).items()}
    config = {
        "peft_type": f"GRAFT_{peft['method'].upper()}",
        "peft": peft,
        "selected": selection is not None,
        "hyper_parameters": dict(checkpoint["hyper_parameters"]),
        "identity": checkpoint["identity"],
    }
    config = json.loads(json.dumps(config))  # as it will be read, for example with lists in the place of tuples
    text = json.dumps(config | {"sha256": hash_of(config)}, indent=2)
    with writing(folder):
        write_atomically(
            folder / WEIGHTS,
            lambda path: save_file(tensors, path, metadata={"format": "pt"}),
            lambda: tensor_bytes(tensors.values()),
        )
        write_atomically(folder / CONFIG, lambda path: path.write_text(text), lambda: len(text))


def one_member(checkpoint: dict[str, Any], name: str = "best") -> dict[str, Any]:
    """Part of one member of a run with ``members``, in the form of a checkpoint of a single run.

    Args:
        checkpoint: Result of ``read_checkpoint``.
        name: Name of the member; ``best`` is the member with the best headline metric in validation.

    Raises:
        ValueError: If there is no such member.
    """
    names = list(checkpoint["members"])
    name = checkpoint["best_member"] if name == "best" else name
    if name not in names:
        raise ValueError(f"export_member={name!r}: no such member; there are best, {', '.join(names)}")
    prefix = f"members.{names.index(name)}."
    state = {n.removeprefix(prefix): t for n, t in checkpoint["state_dict"].items() if n.startswith(prefix)}
    peft = {
        key: value for key, value in checkpoint["peft"].items() if key != "parameters"
    }  # a member has its own number
    return {
        "state_dict": state,
        "peft": peft | {"manifest": manifest(state | with_prefix(peft["selection"])), "member": name},
        "hyper_parameters": checkpoint["hyper_parameters"] | checkpoint["members"][name],
        "identity": checkpoint["identity"],
    }


def read_adapter(folder: Path) -> dict[str, Any]:
    """Read an adapter folder in the form of a checkpoint.

    Raises:
        FileNotFoundError: If one of the two files is missing.
        ValueError: If a file is empty, truncated or damaged.
    """
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: no such file; an adapter folder holds {WEIGHTS} and {CONFIG}")
    try:
        tensors = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        size = (folder / WEIGHTS).stat().st_size
        raise ValueError(f"{folder / WEIGHTS} ({size} bytes) is empty or incomplete: {error}") from error
    config = read_config(folder / CONFIG)
    chosen = {name: tensor for name, tensor in tensors.items() if name.startswith("selection/")}
    if chosen and not config["selected"]:
        raise ValueError(f"{folder / WEIGHTS} holds {next(iter(chosen))}, and {CONFIG} says that nothing was selected")
    selection = {name.removeprefix("selection/"): tensor for name, tensor in chosen.items()}
    checkpoint = {
        "state_dict": {name: tensor for name, tensor in tensors.items() if name not in chosen},
        "peft": config["peft"] | {"selection": selection if config["selected"] else None},
        "hyper_parameters": config["hyper_parameters"],
    }
    identity = "class_names" if "class_names" in config else "identity"
    checkpoint[identity] = config[identity]
    return checked(checkpoint, str(folder))


def read_config(path: Path) -> dict[str, Any]:
    """Read the file ``CONFIG`` of an adapter folder.

    Raises:
        ValueError: If it is no JSON, not of this project or damaged.
    """
    try:
        config = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # no JSON, or no text
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is no adapter of this project: it holds {shown(config)}, expected a mapping")
    identity = "class_names" if "class_names" in config else "identity"  # "class_names" in format 1
    missing, unknown = {"peft", "selected", "hyper_parameters", identity} - set(config), sorted(set(config) - ENTRIES)
    if missing:
        raise ValueError(f"{path} is no adapter of this project: it lacks {', '.join(sorted(missing))}")
    if unknown:
        raise ValueError(f"{path} has the unknown entry {shown(unknown[0])}: it is damaged, or of a newer version")
    expected = config.pop("sha256", None)
    if expected is not None and expected != hash_of(config):
        raise ValueError(f"{path} is damaged: its content is not that of its sha256")
    try:
        check_entries(config, {"peft": dict, "selected": bool, "hyper_parameters": dict})
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from error
    return config


def read_checkpoint(path: str | Path, option: str = "ckpt_path") -> dict[str, Any]:
    """Read a checkpoint file or an adapter folder, weights-only.

    Args:
        path: File or folder. The path of the weights inside an adapter folder means the folder.
        option: Name of the option of this path, for messages.

    Raises:
        FileNotFoundError: If ``path`` does not exist.
        ValueError: If the file is empty, truncated, unsafe or not of this project.
    """
    path = Path(path)
    if path.name == WEIGHTS:
        path = path.parent
    if path.is_dir():
        return read_adapter(path)
    if not path.is_file():
        raise FileNotFoundError(f"{option}={str(path)!r}: no such file")
    with path.open("rb") as file:
        if file.read(len(PACKED)) == PACKED:
            raise ValueError(
                f"{option}={str(path)!r} is a packed file; make it an adapter folder first: "
                f"python train.py import_packed --packed {path} --output ADAPTER"
            )
    try:
        check_zip(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises EOFError, RuntimeError, UnpicklingError and more for a damaged file
        cause = error.__context__ or error  # torch's message suggests weights_only=False: do not show it
        reason = f"{type(cause).__name__} {str(cause).partition(chr(10))[0]}".strip()
        raise ValueError(
            f"{option}={str(path)!r} ({path.stat().st_size} bytes) is empty, incomplete or unsafe: {reason}"
        ) from error
    if not isinstance(checkpoint, dict) or "peft" not in checkpoint:
        raise ValueError(f"{option}={str(path)!r} is no checkpoint of this project: it has no 'peft' entry")
    return checked(checkpoint, f"{option}={str(path)!r}")


def check_zip(path: Path) -> None:
    """Compare each part of a torch file with its checksum, because torch does not.

    Raises:
        BadZipFile: If a part differs.
    """
    if zipfile.is_zipfile(path):  # files of another kind have no checksums
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} has another checksum than when it was written")


def checked(checkpoint: dict[str, Any], file: str) -> dict[str, Any]:
    """What was read from a file, in the current format.

    Args:
        checkpoint: What was read.
        file: The file, for messages.

    Raises:
        ValueError: If an entry is missing or has another type, or a tensor is not that of the manifest.
    """
    try:
        to_current_format(checkpoint)
        check_tensors(checkpoint)
    except ValueError as error:
        raise ValueError(f"{file} cannot be used: {error}") from error
    return checkpoint


def to_current_format(checkpoint: dict[str, Any]) -> None:
    """Translate a checkpoint of an older format to the current format, in place, and check its entries.

    Raises:
        ValueError: If the format is unknown, or an entry is missing or has another type.
    """
    check_entries(checkpoint, BEGINNING)
    if checkpoint["peft"].get("format") == 1:
        to_format_2(checkpoint)
    check_format(checkpoint["peft"])
    check_model(checkpoint)
