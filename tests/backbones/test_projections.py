"""Rows of queries, keys and values, checked against the forward pass of each family."""

from typing import Any

import pytest
import torch

from backbones.projections import attention_rows
from commands.matrix.families import FAMILIES, build

# attention whose only use of q and k is their product
PRODUCT = ["vision_transformer", "beit", "cait", "convit", "crossvit", "cpubone", "efficientformer", "hiera"]
PRODUCT += ["efficientformer_v2", "efficientvit_mit", "efficientvit_msra", "iformer", "levit", "lowformer", "maxxvit"]
PRODUCT += ["maxxvit/coatnet", "mobilevit", "nest", "nextvit", "pit", "pvt_v2", "shvit", "swin_transformer"]
PRODUCT += ["tiny_vit", "tnt", "twins", "visformer", "volo"]


@torch.no_grad()
def scale(model: Any, part: str, factor: float) -> None:
    """Multiply the rows of q, k or v in all layers, and their bias."""
    for name, rows in attention_rows(model).items():
        layer = model.get_submodule(name)
        if part in rows:
            layer.weight[rows[part]] *= factor
            if layer.bias is not None:
                layer.bias[rows[part]] *= factor


def with_values(family: str) -> Any:
    """A network whose attention acts on its output: no zeros, and no layer scales near 0; biases stay 0."""
    model: Any = build(family)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            continue
        if parameter.dim() == 1 and parameter.abs().max() < 1e-2:
            parameter.data.uniform_(0.4, 0.6, generator=generator)
        elif not parameter.any():
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.double()


@pytest.mark.parametrize("family", PRODUCT)
def test_a_factor_of_q_is_undone_by_k(family: str) -> None:
    """Exactly, because the factors are powers of 2; a factor of v is not undone."""
    model, images = with_values(family), torch.randn(1, 3, FAMILIES[family].size, FAMILIES[family].size).double()
    with torch.no_grad():
        plain = model(images)
        scale(model, "q", 4.0)
        assert not torch.equal(model(images), plain)
        scale(model, "k", 0.25)
        torch.testing.assert_close(model(images), plain, rtol=1e-12, atol=1e-12)
        scale(model, "v", 4.0)
        assert not torch.allclose(model(images), plain, rtol=1e-6, atol=1e-9)


def test_parts_of_one_row_are_left_out() -> None:
    (rows, *_) = attention_rows(build("mobilevit/v2")).values()
    assert set(rows) == {"k", "v"}


@pytest.mark.parametrize("family", ["resnet", "convnext", "mlp_mixer", "metaformer"])
def test_networks_without_attention(family: str) -> None:
    assert attention_rows(build(family)) == {}


def test_attention_that_pools_is_left_out() -> None:
    assert not any("attn_pool" in name for name in attention_rows(build("vision_transformer/siglip")))
