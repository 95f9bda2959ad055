"""Adapter folders that were changed on purpose, with hashes that fit the change or without any."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from checkpoints.delta import CONFIG, WEIGHTS
from checkpoints.fingerprint import hash_of, manifest


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change tensors of an adapter in place, and write a manifest that lists the changed ones."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    change_config(folder, lambda config: config["peft"].update(manifest=manifest(tensors)))


def change_config(folder: Path, change: Callable[[dict[str, Any]], Any], hashed: bool = True) -> None:
    """Change the JSON of an adapter in place.

    Args:
        folder: The adapter folder.
        change: Changes the mapping in place.
        hashed: Whether to write the hash of the changed content, otherwise no hashes, as before December 2026.
    """
    config = json.loads((folder / CONFIG).read_text())
    config.pop("sha256", None)
    if not hashed:
        listed = config["peft"]["manifest"]
        config["peft"].pop("parameters", None)
        config["peft"]["manifest"] = {
            name: {key: value for key, value in entry.items() if key != "sha256"}
            for name, entry in listed.items()
            if not name.startswith("selection/")
        }
    change(config)
    (folder / CONFIG).write_text(json.dumps(config | ({"sha256": hash_of(config)} if hashed else {})))
