"""Hashes of tensors and of plain data."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes, dtypes and bytes (of meta tensors none) of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if not tensor.is_meta:
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def manifest(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Name, dtype, shape and hash of every tensor, as plain data."""
    return {
        name: {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "sha256": fingerprint({"": tensor}),
        }
        for name, tensor in tensors.items()
    }


def hash_of(data: Any) -> str:
    """sha256 over plain data in canonical JSON: with sorted keys and without spaces."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
