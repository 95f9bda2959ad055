"""Places in a backbone, checked against what runs in its forward pass."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

from backbones.anatomy import call_qkv, ends, linear_layers, owner, per_block, reads_bare_weight, transformer_blocks
from backbones.anatomy import (
    ends,
    linear_layers,
    owner,
    per_block,
    reads_bare_weight,
    stem_parameters,
    transformer_blocks,
    used_parameters,
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


@pytest.mark.parametrize("family", ["vit", "eva", "swin"])
def test_blocks_are_pre_norm(family: str) -> None:
    """In the order of the forward pass, each block norms its input before attention reads it."""
    model = backbone(family)
    blocks = transformer_blocks(model)
    assert len(blocks) == 3
    events: list[tuple[int, str]] = []
    for index, block in enumerate(blocks):
        for name in ("norm1", "attn", "norm2", "mlp"):
            module = getattr(block, name)
            module.register_forward_hook(lambda *_, index=index, name=name: events.append((index, name)))
    with torch.no_grad():
        model(torch.randn(1, 3, SIZE[family], SIZE[family]))
    assert events == [(index, name) for index in range(3) for name in ("norm1", "attn", "norm2", "mlp")]


@pytest.mark.parametrize("family", ["swin_v2", "resnet"])
def test_other_blocks_are_refused(family: str) -> None:
    with pytest.raises(ValueError, match="has no pre-norm transformer blocks: use a ViT, EVA or Swin"):
        transformer_blocks(backbone(family))


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


def test_used_parameters_leave_the_network_as_it_is() -> None:
    """A layer without a call is not used; modes, flags and statistics stay."""
    model = backbone("resnet").train()
    model.bn1.eval()
    model.requires_grad_(False)
    model.extra = nn.Linear(2, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    used = used_parameters(model, lambda: model(torch.zeros(1, 3, 32, 32)))
    assert used == set(before) & {n for n, _ in model.named_parameters()} - {"extra.weight", "extra.bias"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert (model.training, model.bn1.training, model.layer1.training) == (True, False, True)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"extra.weight", "extra.bias"}
