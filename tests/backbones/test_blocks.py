"""Blocks of small networks of all families, checked against what runs in their forward pass."""

from typing import Any

import pytest
import torch
from torch import nn

from backbones.blocks import (
    attention_blocks,
    channels_first,
    constant_blocks,
    convolutional_blocks,
    last_blocks,
    pre_norm_blocks,
    width,
)
from commands.methods.families import FAMILIES, build

FAST = [name for name, family in FAMILIES.items() if not family.slow]


def blocks_of(find: Any, network: nn.Module) -> list[Any]:
    """Blocks of a network; none if it is refused."""
    try:
        return find(network, "this test")
    except ValueError:
        return []


def networks(find: Any) -> dict[str, Any]:
    """Small networks of all families that have blocks, by name."""
    built = {name: build(name) for name in FAST}
    return {name: network for name, network in built.items() if find(network)}


def run(network: nn.Module, size: int, record: dict[nn.Module, Any]) -> None:
    """Run a forward pass that fills ``record`` with inputs and outputs (first tensors) of the modules in it."""

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        record[module] = (args[0] if args else None, output)

    for module in list(record):
        module.register_forward_hook(keep)
    with torch.no_grad():
        network(torch.randn(2, 3, size, size))


def test_branches_end_in_the_stream() -> None:
    """The input of ``norm2`` and the end of the MLP's branch have one shape, with the block's width of channels."""
    found = networks(lambda network: blocks_of(pre_norm_blocks, network))
    assert len(found) >= 30
    for name, network in found.items():
        blocks = pre_norm_blocks(network, "this test")
        record: dict[nn.Module, Any] = {module: None for b in blocks for module in (b.norm2, b.drop_path2)}
        run(network, FAMILIES[name].size, record)
        for block in blocks:
            stream, branch = record[block.norm2][0], record[block.drop_path2][1]
            assert stream.shape == branch.shape, name
            assert stream.shape[1 if channels_first(block) else -1] == width(block), name


def test_norms_are_before_the_branches() -> None:
    """In the order of the forward pass, each block norms its input before attention and MLP read it."""
    for name, network in networks(lambda network: blocks_of(pre_norm_blocks, network)).items():
        blocks = pre_norm_blocks(network, "this test")
        events: list[tuple[int, str]] = []
        for index, block in enumerate(blocks):
            for part in ("norm1", "attn", "norm2", "mlp"):
                module = getattr(block, part)
                module.register_forward_hook(lambda *_, event=(index, part), events=events: events.append(event))
        with torch.no_grad():
            network(torch.randn(2, 3, FAMILIES[name].size, FAMILIES[name].size))
        for index in range(len(blocks)):
            parts = [part for block, part in events if block == index]
            assert parts == ["norm1", "attn", "norm2", "mlp"], name


def test_attention_keeps_the_shape() -> None:
    found = networks(lambda network: blocks_of(constant_blocks, network))
    assert len(found) > 20
    for name, network in found.items():
        blocks = constant_blocks(network, "this test")
        record: dict[nn.Module, Any] = {module: None for b in blocks for module in (b.norm1, b.drop_path1)}
        run(network, FAMILIES[name].size, record)
        for block in blocks:
            assert record[block.norm1][0].shape == record[block.drop_path1][1].shape, name
            assert record[block.norm1][0].shape[-1] == width(block), name


def test_width_of_convolutional_blocks() -> None:
    found = networks(convolutional_blocks)
    assert len(found) > 15
    for name, network in found.items():
        blocks = convolutional_blocks(network)
        record: dict[nn.Module, Any] = {block: None for block, _ in blocks}
        firsts = {block: block.get_submodule(layers.first) for block, layers in blocks}
        record |= dict.fromkeys(firsts.values())
        run(network, FAMILIES[name].size, record)
        for block, layers in blocks:
            assert record[block][1].shape[1] == block.get_submodule(layers.last).weight.shape[0], name
            assert record[firsts[block]] is not None, f"{name}: the first layer is called"


def test_kinds() -> None:
    """Blocks whose norms are behind the branches, or whose attention has one query, are no pre-norm blocks."""
    assert not blocks_of(pre_norm_blocks, build("swin_transformer_v2"))
    assert len(attention_blocks(build("swin_transformer_v2"))) == 4
    assert len(blocks_of(pre_norm_blocks, build("volo"))) == 4
    assert blocks_of(pre_norm_blocks, build("hiera"))
    assert not blocks_of(constant_blocks, build("hiera"))


def test_last_blocks_and_refusals() -> None:
    vit: Any = build("vision_transformer")
    assert last_blocks(vit, 1) == [vit.blocks[-1]]
    assert len(last_blocks(build("resnet"), 2)) == 2
    with pytest.raises(ValueError, match=r"this test, and ResNet has no transformer blocks .*: use a ViT, DINOv3"):
        pre_norm_blocks(build("resnet"), "this test")
    with pytest.raises(ValueError, match="2, because VisionTransformer has 2 blocks"):
        last_blocks(vit, 3)
    with pytest.raises(ValueError, match="0, because StarNet has 0 blocks of known kinds, which bitfit"):
        last_blocks(build("starnet"), 1)
