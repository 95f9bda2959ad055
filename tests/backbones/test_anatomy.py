"""Places in a backbone, checked against what runs in its forward pass."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

from backbones.anatomy import (
    call_qkv,
    drop_path_rate,
    drops_patches,
    ends,
    has_windows,
    linear_layers,
    norms_first,
    owner,
    patch_embedding,
    per_block,
    reads_bare_weight,
    stem_parameters,
    token_grid,
    token_sequence,
    weight_layers,
)

SIZE = {"vit": 32, "eva": 28, "beit": 32, "swin": 32, "swin_v2": 64, "resnet": 32}


def backbone(family: str) -> Any:
    """A small model with random weights."""
    swin: dict[str, Any] = {"embed_dim": 32, "depths": (1, 2), "num_heads": (2, 4)}
    vit: dict[str, Any] = {"img_size": SIZE[family], "embed_dim": 48, "depth": 3, "num_heads": 3}
    name, options = {
        "vit": ("vit_tiny_patch16_224", vit),
        "eva": ("eva02_tiny_patch14_224", vit),
        "beit": ("beit_base_patch16_224", vit),
        "swin": ("swin_tiny_patch4_window7_224", swin | {"img_size": 32, "window_size": 4}),
        "swin_v2": ("swinv2_tiny_window8_256", swin | {"img_size": 64, "window_size": 2}),
        "resnet": ("resnet18", {}),
    }[family]
    return timm.create_model(name, num_classes=3, **options).eval()


@pytest.mark.parametrize("family", ["vit", "eva", "beit", "swin", "swin_v2"])
def test_a_layer_is_called_unless_its_weight_is_read_bare(family: str) -> None:
    model, called = backbone(family), set()
    layers = linear_layers(model, heads=("head", "head.fc"))
    for name, layer in layers.items():
        layer.register_forward_hook(lambda *_, name=name: called.add(name))
    with torch.no_grad():
        model(torch.randn(1, 3, SIZE[family], SIZE[family]))
    bare = {name for name in layers if reads_bare_weight(model, name)}
    assert called == set(layers) - bare
    assert bool(bare) == (family in ("eva", "beit", "swin_v2")), "what the test is about"
    assert all(name.endswith("attn.qkv") for name in bare)


@pytest.mark.parametrize("family", ["eva", "beit", "swin_v2"])
def test_a_called_qkv_gives_the_same(family: str) -> None:
    model, called = backbone(family), set()
    names = [name for name in linear_layers(model) if reads_bare_weight(model, name)]
    for module in model.modules():
        if getattr(module, "q_bias", None) is not None:
            nn.init.normal_(module.q_bias)
    images = torch.randn(1, 3, SIZE[family], SIZE[family])
    with torch.no_grad():
        expected = model(images)
        call_qkv(model)
        for name in names:
            model.get_submodule(name).register_forward_hook(lambda *_, name=name: called.add(name))
        torch.testing.assert_close(model(images), expected)
        assert called == set(names)
        called.clear()
        call_qkv(model, False)
        assert torch.equal(model(images), expected)
    assert not called


def test_layers_between_stem_and_classifier() -> None:
    layers = weight_layers(backbone("resnet"), heads=("fc",))
    assert {name.partition(".")[0] for name in layers} == {"layer1", "layer2", "layer3", "layer4"}


def test_linear_layers_of_a_vit() -> None:
    names = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    model = backbone("vit")
    assert list(linear_layers(model, heads=("head",))) == [f"blocks.{i}.{name}" for i in range(3) for name in names]
    assert [*set(linear_layers(model)) - set(linear_layers(model, heads=("head",)))] == ["head"]


def test_ends_compares_whole_words() -> None:
    assert ends("blocks.0.attn.qkv", "qkv")
    assert ends("blocks.0.attn.qkv", "attn.qkv")
    assert ends("qkv", "qkv")
    assert not ends("blocks.0.attn.kv_qkv", "qkv")
    assert not ends("blocks.0.attn.qkv", "attn")


def test_a_size_for_every_block() -> None:
    assert per_block("prompt_lengths", None, 7, blocks=3) == [7, 7, 7]
    assert per_block("prompt_lengths", [0, 2, 1], 7, blocks=3) == [0, 2, 1]


@pytest.mark.parametrize("values", [[1, 2], [1, 2, 3, 4], [1, -1, 2], [0, 0, 0]])
def test_sizes_that_fit_no_block_are_refused(values: list[int]) -> None:
    with pytest.raises(ValueError, match=r"prompt_lengths=\[.*expected a size for each of the 3 blocks, 0 for none"):
        per_block("prompt_lengths", values, 7, blocks=3)


def test_owner_of_every_parameter() -> None:
    model = backbone("vit")
    for name, parameter in model.named_parameters():
        module = owner(model, name)
        assert isinstance(module, nn.Module)
        assert getattr(module, name.rpartition(".")[2]) is parameter


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("vit", {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}),
        ("swin", {f"patch_embed.{layer}.{kind}" for layer in ("proj", "norm") for kind in ("weight", "bias")}),
        ("resnet", {"conv1.weight", "bn1.weight", "bn1.bias"}),
    ],
)
def test_parameters_of_the_stem(family: str, expected: set[str]) -> None:
    assert stem_parameters(backbone(family)) == expected


SEQUENCES = {
    "vit_tiny_patch16_224": 1,
    "vit_small_patch14_reg4_dinov2": 5,
    "vit_base_patch16_siglip_224": 0,
    "vit_small_patch16_dinov3": 5,
    "eva02_tiny_patch14_224": 1,
    "beit_base_patch16_224": 1,
    "naflexvit_base_patch16_gap": 4,
    "vit_relpos_small_patch16_224": 0,
}


@pytest.mark.parametrize(("name", "prefix"), SEQUENCES.items())
def test_token_sequence(name: str, prefix: int) -> None:
    """Every block reads and writes prefix tokens and the patches of the grid."""
    args = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "drop_path_rate": 0.2}
    model: Any = timm.create_model(name, num_classes=3, **args).eval()
    sequence = token_sequence(model, "a test reads tokens")
    assert (sequence.width, sequence.prefix) == (48, prefix)
    assert token_grid(model, (32, 48)) == (4, 6)
    assert tuple(patch_embedding(model).patch_size) == (8, 8)
    assert [drop_path_rate(block) for block in sequence.blocks] == [0, pytest.approx(0.2)]
    shapes: list[tuple[int, ...]] = []
    for block in sequence.blocks:
        assert norms_first(block)
        block.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
        block.register_forward_hook(lambda module, args, out: shapes.append(tuple(out.shape)))
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 48))
    assert shapes == [(1, prefix + 24, 48)] * 4
    assert not drops_patches(model)
    assert not has_windows(model)


@pytest.mark.parametrize("family", ["swin", "swin_v2", "resnet"])
def test_backbones_without_a_sequence_are_refused(family: str) -> None:
    with pytest.raises(
        ValueError, match=r"a test reads tokens, and \w+ is not known to have one sequence .*: use a ViT"
    ):
        token_sequence(backbone(family), "a test reads tokens")
    assert has_windows(backbone(family)) == (family == "swin")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3", "naflexvit_base_patch16_gap"])
def test_dropped_patches(name: str) -> None:
    args = {"img_size": 32, "embed_dim": 48, "depth": 1, "num_heads": 3, "patch_drop_rate": 0.5}
    assert drops_patches(timm.create_model(name, **args))


@pytest.mark.parametrize("name", ["vit_base_patch16_rpn_224", "eva02_enormous_patch14_clip_224"])
def test_blocks_with_norms_behind_their_branches(name: str) -> None:
    model: Any = timm.create_model(name, img_size=28, embed_dim=48, depth=1, num_heads=3)
    assert not norms_first(model.blocks[0])
