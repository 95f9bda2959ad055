"""A constant at the output of a layer, moved into plain weights."""

from copy import deepcopy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from backbones.anatomy import call_qkv
from backbones.flow import trace
from backbones.shift import add_to_output

VIT: dict[str, Any] = {"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2}
RGB = torch.rand(2, 3, 32, 32)


def moved(model: Any, name: str, images: Tensor) -> tuple[bool, float, float]:
    """Whether there is a place; the effect of a shift as a hook; its difference to the effect of the new weights."""
    model.requires_grad_(False).eval()
    layer = model.get_submodule(name)
    flow = trace(model, [n for n, m in model.named_modules() if not list(m.children())], model, images)
    plain = model(images)
    shapes, norms = flow.shapes[name], isinstance(layer, nn.Conv2d)
    shift = torch.randn(shapes[1 if norms else -1])
    handle = layer.register_forward_hook(lambda _, args, y: y + (shift.view(-1, 1, 1) if norms else shift))
    expected = model(images)
    handle.remove()
    other = deepcopy(model)
    found = add_to_output(other, flow, name, shift)
    call_qkv(other, False)
    return found, float((expected - plain).abs().max()), float((other(images) - expected).abs().max())


def network(*layers: nn.Module) -> nn.Sequential:
    """Layers with random statistics and weights."""
    torch.manual_seed(0)
    net = nn.Sequential(*layers)
    for tensor in net.state_dict().values():
        if tensor.dim() == 1:
            tensor.uniform_(0.5, 1.5)
    return net


FOUND: dict[str, tuple[nn.Module, Tensor]] = {
    "own bias": (network(nn.Conv2d(3, 4, 3)), RGB),
    "BatchNorm": (network(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()), RGB),
    "linear": (network(nn.RMSNorm(32), nn.Linear(32, 4)), RGB),
    "two layers": (network(nn.RMSNorm(32), nn.Linear(32, 4, bias=False), nn.Linear(4, 4)), RGB),
    "convolution": (network(nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 6, (2, 3), groups=2)), RGB),
}
NOWHERE: dict[str, tuple[nn.Module, Tensor]] = {
    "no follower": (network(nn.Linear(32, 4, bias=False)), RGB),
    "activation": (network(nn.Linear(32, 4, bias=False), nn.ReLU(), nn.Linear(4, 4)), RGB),
    "norm": (network(nn.Linear(32, 4, bias=False), nn.LayerNorm(4)), RGB),
    "zero padding": (network(nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 4, 3, padding=1)), RGB),
}


@pytest.mark.parametrize("case", FOUND)
def test_places(case: str) -> None:
    found, effect, difference = moved(FOUND[case][0], "0", FOUND[case][1])
    assert found
    assert effect > 0.1
    assert difference < 1e-5


@pytest.mark.parametrize("case", NOWHERE)
def test_no_place(case: str) -> None:
    """Nothing changes."""
    found, effect, difference = moved(NOWHERE[case][0], "0", NOWHERE[case][1])
    assert not found
    assert effect == difference > 0


@pytest.mark.parametrize(
    ("backbone", "name", "place"),
    [
        ("vit_base_patch16_clip_224", "patch_embed.proj", True),
        ("beit_base_patch16_224", "blocks.0.attn.qkv", True),
        ("eva02_tiny_patch14_224", "blocks.0.attn.qkv", False),
    ],
)
def test_position_embeddings_and_biases_of_attention(backbone: str, name: str, place: bool) -> None:
    """A bias of the keys has no effect on the softmax, unless the keys are rotated."""
    torch.manual_seed(0)
    size = 28 if "eva" in backbone else 32
    model = timm.create_model(backbone, num_classes=3, **VIT | {"img_size": size})
    for parameter in model.parameters():
        parameter.data.normal_(0.0, 0.5)
    call_qkv(model)
    found, effect, difference = moved(model, name, torch.rand(2, 3, size, size))
    assert found == place
    assert effect > 0.01
    assert (difference < 1e-4 * effect) == place
