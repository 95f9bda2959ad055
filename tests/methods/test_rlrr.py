"""RLRR."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from methods import PEFTMethod
from methods.rlrr import block_numbers
from tests.support.golden import Golden, head_parameters

# q, k, v, proj 3 x 768 each, fc1 and fc2; two norms a block; final norm and patch embedding. With VTAB-1k's
# classifiers the paper's 0.33M
COUNTS = {"vit_base_patch16_224": 12 * (4 * 3 * 768 + 2 * (768 + 3072) + 3072 + 768 + 4 * 768) + 4 * 768}
IDENTITY: dict[str, Any] | None = None
Build = Callable[..., PEFTMethod]
LAYERS = {"out": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
QKV = ["query", "key", "value"]


def part_of(model: Any, name: str) -> tuple[str, slice]:
    """Our parameter for one of the published code, and its place inside ours."""
    parts, last = name.split("."), name.rpartition(".")[2]
    kind = {"scale_col": "rlrr.r", "scale_line": "rlrr.l", "shift_bias": "rlrr_shift.f"}.get(last)
    if kind and parts[5] in QKV:
        at = QKV.index(parts[5]) * 24
        return f"blocks.{parts[3]}.attn.qkv.{kind}", slice(at, at + 24)
    if kind:
        return f"blocks.{parts[3]}.{LAYERS[parts[5]]}.{kind}", slice(None)
    _, way, *place = last.split("_")
    owner = {"patch": "patch_embed.proj", "enc": "norm"}.get(place[0])
    owner = owner or f"blocks.{parts[3]}.norm{1 if place[0] == 'attn' else 2}"
    return f"{owner}.rlrr.{way}", slice(None)


def check_rlrr(golden: Golden) -> None:
    model: Any = golden.build("rlrr")
    for name, value in golden.part("peft").items():
        ours, at = part_of(model, name)
        model.backbone.get_parameter(ours).data[at] = value.flatten()
    golden.check_logits(model)
    loss = torch.nn.functional.cross_entropy(model(golden.tensors["input"]), golden.tensors["label"])
    loss.backward()
    seen: dict[str, int] = {}
    for name, gradient in golden.part("grad").items():
        ours, at = (name, slice(None)) if name.startswith("head") else part_of(model, name)
        found: Tensor = model.backbone.get_parameter(ours).grad[at]
        torch.testing.assert_close(found, gradient.view_as(found), atol=2e-5, rtol=0, msg=lambda t, n=name: f"{n}: {t}")
        seen[ours] = seen.get(ours, 0) + found.numel()
    assert seen == {n: p.numel() for n, p in model.backbone.named_parameters() if p.requires_grad}
    assert set(head_parameters(model)) <= set(seen)
    golden.check_merge(model)


GOLDEN = {"rlrr": check_rlrr}


def test_numbers_of_rows() -> None:
    q, k = torch.tensor([0, 1, 4, 5]), torch.tensor([2, 3, 6, 7])
    numbers, count = block_numbers([q, k], nn.Linear(3, 8))
    assert numbers is not None
    assert (numbers.tolist(), count) == ([0, 0, 1, 1, 0, 0, 1, 1], 2)
    assert block_numbers([q], nn.Linear(3, 4)) == (None, 1)
    assert block_numbers([q, k], nn.Linear(3, 9)) == (None, 1)  # a row of another kind, such as a gate


def test_initial_values(build: Build) -> None:
    model: Any = build("rlrr")
    model.configure_model()
    qkv = model.backbone.blocks[0].attn.qkv
    assert 2 < qkv.rlrr.l.abs().max() <= 6**0.5
    assert 0.3 < qkv.rlrr.r.abs().max() <= (6 / 48) ** 0.5
    assert len(qkv.rlrr.r) == 3 * 48
    assert not qkv.rlrr_shift.f.any()
