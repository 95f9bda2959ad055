"""Heads by name."""

import pytest
from torch import nn

from lightning_modules.heads.decoders import Head, decoders
from lightning_modules.heads.linear import Linear
from lightning_modules.heads.semantic_fpn import SemanticFPN
from lightning_modules.heads.setr import SETRPUP
from lightning_modules.heads.upernet import FCN, UperNet


@pytest.mark.parametrize(
    ("head", "kind", "others"),
    [
        ("linear", Linear, []),
        ("semantic_fpn", SemanticFPN, []),
        ("upernet", UperNet, [FCN]),
        ("setr_pup", SETRPUP, [SETRPUP] * 3),
    ],
)
def test_kinds(head: Head, kind: type[nn.Module], others: list[type[nn.Module]]) -> None:
    decoder, auxiliary = decoders(head, [8] * 4, 3, 4, auxiliary=True)
    assert type(decoder) is kind
    assert [type(other) for other in auxiliary] == others
    assert len(decoders(head, [8] * 4, 3, 4, auxiliary=False)[1]) == 0


def test_setr_reads_one_width() -> None:
    with pytest.raises(ValueError, match=r"head='setr_pup' reads the patches of a plain ViT.*\[4, 8\] channels"):
        decoders("setr_pup", [4, 8], 3, 4, auxiliary=True)
