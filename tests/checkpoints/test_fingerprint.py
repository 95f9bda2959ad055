"""Hashes and manifests of tensors, and hashes of plain data."""

import torch

from checkpoints.fingerprint import fingerprint, hash_of, manifest


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
    tensors = {"a": torch.ones(2, 3, dtype=torch.bfloat16), "b": torch.tensor(1)}
    listed = manifest(tensors)
    hashes = [entry.pop("sha256") for entry in listed.values()]
    assert listed == {"a": {"dtype": "bfloat16", "shape": [2, 3]}, "b": {"dtype": "int64", "shape": []}}
    assert all(len(bytes.fromhex(text)) == 32 for text in hashes)
    tensors["a"][1, 2] = 1.0078125  # the next number
    assert manifest(tensors)["a"]["sha256"] != hashes[0]
    assert manifest(tensors)["b"]["sha256"] == hashes[1]


def test_meta_tensors_have_no_bytes() -> None:
    first, second = torch.empty(2, 3, device="meta"), torch.empty(3, 2, device="meta")
    assert fingerprint({"a": first}) != fingerprint({"a": second})


def test_hash_of_plain_data() -> None:
    assert hash_of({"a": [1, 2.5, None], "b": "x"}) == hash_of({"b": "x", "a": [1, 2.5, None]})
    assert hash_of({"a": 1}) != hash_of({"a": "1"}) != hash_of({"a": True})
