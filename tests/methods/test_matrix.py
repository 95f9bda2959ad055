"""Every method on a small network of every family of timm: it works as docs/backbones.md says, or it is refused.

The families that are marked slow run with ``-m matrix``. After a change, print the page anew:
``python train.py methods --matrix > docs/backbones.md``.
"""

import re
from functools import cache
from typing import Any

import pytest
import timm
from torch import nn

from commands.methods.cell import outcome
from commands.methods.families import FAMILIES, Family, network
from commands.methods.matrix import MARKS, STACK, read_page
from tests.conftest import ROOT

REMEDY = re.compile(r"\b(use|expected|choose|give|leave|pass|raise)\b")  # what to do, in a refusal
plain = cache(network)


@cache
def documented() -> dict[tuple[str, str], str]:
    """Marks of docs/backbones.md by family and method."""
    return read_page((ROOT / "docs/backbones.md").read_text())


def cells() -> list[Any]:
    slow = pytest.mark.matrix
    return [
        pytest.param(family, method, marks=slow if FAMILIES[family].slow else (), id=f"{family}-{method}")
        for family in FAMILIES
        for method in STACK
    ]


@pytest.mark.parametrize(("family", "method"), cells())
def test_cell(family: str, method: str) -> None:
    found = outcome(STACK[method], FAMILIES[family], plain(family))
    assert MARKS[found.state] == documented()[family, method], found.message
    if found.state == "refused":
        assert REMEDY.search(found.message), found.message


@pytest.mark.parametrize("method", ["dtl", "e2vpt", "hst", "last", "lst", "repadapter", "vpt", "vqt"])
def test_dinov3_with_gated_mlps(method: str) -> None:
    """The larger models have another MLP than the one of the table, and the ``qkvb`` models biases of q, k and v."""
    name, args = "vit_small_plus_patch16_dinov3_qkvb", FAMILIES["eva/dinov3"].args
    network = timm.create_model(name, num_classes=3, **args)
    assert outcome(method, Family(name, args, 32), network).state != "refused"


def test_every_cell_is_documented() -> None:
    assert documented().keys() == {(family, method) for family in FAMILIES for method in STACK}


def test_networks_stay() -> None:
    """A cell works on a copy."""
    first: nn.Module = plain("vision_transformer")
    outcome("full", FAMILIES["vision_transformer"], first)
    again = network("vision_transformer").state_dict()
    assert all(tensor.equal(again[name]) for name, tensor in first.state_dict().items())
    assert isinstance(first, timm.models.VisionTransformer)
