"""Targets of low-rank updates, as blocks of rows."""

import pytest
import torch

from commands.matrix.families import build
from methods.layers.low_rank_targets import Target, as_blocks, find_targets


def test_blocks_in_one_piece_need_no_order() -> None:
    q, v = torch.arange(4), torch.arange(8, 12)
    assert as_blocks([v, q], 12) == Target(((0, 4), (8, 12)))


def test_order_puts_rows_of_a_part_side_by_side() -> None:
    q, v = torch.tensor([0, 1, 6, 7]), torch.tensor([4, 5, 10, 11])
    target = as_blocks([v, q], 12)
    assert target.rows == ((0, 4), (4, 8))
    assert target.order is not None
    assert target.order.tolist() == [0, 1, 6, 7, 4, 5, 10, 11, 2, 3, 8, 9]


@pytest.mark.parametrize(
    ("family", "heads", "targets", "expected"),
    [
        ("vision_transformer", ("head",), None, {"blocks.0.attn.qkv", "blocks.1.attn.qkv"}),
        ("vision_transformer", ("head",), ["proj"], {"blocks.0.attn.proj", "blocks.1.attn.proj"}),
        ("efficientnet", ("classifier",), ["conv_pw"], None),
    ],
)
def test_names(family: str, heads: tuple[str, ...], targets: list[str] | None, expected: set[str] | None) -> None:
    found = set(find_targets(build(family), targets, heads))
    if expected is None:
        assert found
        assert all(name.endswith("conv_pw") for name in found)
    else:
        assert found == expected


def test_every_layer_without_attention() -> None:
    """Not the stem and not the classifier."""
    model = build("convnext")
    found = find_targets(model, None, ("head.fc",))
    assert {name.partition(".")[0] for name in found} == {"stages"}
    assert any("conv_dw" in name for name in found)
    assert any("fc1" in name for name in found)


def test_the_largest_rank_is_that_of_the_smallest_side() -> None:
    conv = torch.nn.Conv2d(3, 20, 3)
    assert Target(((0, 20),)).largest_rank(conv) == 20
    assert Target(((0, 8), (8, 20))).largest_rank(conv) == 8
    assert Target(((0, 20),)).largest_rank(torch.nn.Conv2d(20, 20, 3, groups=20)) == 9
