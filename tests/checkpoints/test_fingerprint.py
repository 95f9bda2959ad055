"""Hashes and manifests of tensors."""

import torch

from checkpoints.fingerprint import fingerprint, manifest


def test_fingerprint_sees_every_change() -> None:
    base = {"a": torch.arange(4.0), "b": torch.ones(2, 2, dtype=torch.bfloat16), "c": torch.tensor(1)}
    same = {"c": torch.tensor(1), "b": torch.ones(2, 4, dtype=torch.bfloat16)[:, ::2], "a": torch.arange(4.0)}
    assert fingerprint(same) == fingerprint(base)
    others = [
        base | {"a": torch.tensor([0.0, 1.0, 2.0, 3.0000002])},
        base | {"a": torch.arange(4.0).view(2, 2)},
        base | {"a": torch.arange(4.0).view(torch.int32)},
        base | {"d": torch.zeros(0)},
        {"A" if name == "a" else name: tensor for name, tensor in base.items()},
        base | {"a": torch.tensor([-0.0, 1.0, 2.0, 3.0])},
    ]
    assert len({fingerprint(tensors) for tensors in [base, *others]}) == 7


def test_manifest() -> None:
    expected = {"a": {"dtype": "bfloat16", "shape": [2, 3]}, "b": {"dtype": "int64", "shape": []}}
    assert manifest({"a": torch.ones(2, 3, dtype=torch.bfloat16), "b": torch.tensor(1)}) == expected
