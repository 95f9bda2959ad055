"""QLoRA, and the NF4 format below it."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backbones.inject import swap_class
from callbacks.measures import SavedBytes
from lightning_modules.classification import Classification
from methods import METHODS, PEFTMethod, compose
from methods.layers import nf4
from methods.qlora import NF4Linear, QDoRALinear, QLoRALinear
from tests.conftest import BACKBONE, TINY, perturb
from tests.support.batches import as_batch
from tests.support.golden import Golden

COUNTS = {"vit_base_patch16_224": 294_912}
IDENTITY: dict[str, Any] | None = None  # the step to four bits changes the output; see below for what is equal
Build = Callable[..., PEFTMethod]


def check_nf4(golden: Golden) -> None:
    """Every byte equals bitsandbytes'; its mean of the absmax values is a rounding of a float away from ours."""
    stored = golden.tensors
    assert torch.equal(nf4.code(torch.device("cpu")), stored["code"])
    assert torch.equal(nf4.nested_code(torch.device("cpu")), stored["code2"])
    packed, absmax = nf4.quantize(stored["weight"])
    assert torch.equal(packed, stored["packed"].flatten())
    assert torch.equal(absmax, stored["absmax"])
    shape = tuple(stored["weight"].shape)
    assert torch.equal(nf4.dequantize(packed, absmax, shape), stored["dequant"])
    torch.testing.assert_close(stored["x"] @ nf4.dequantize(packed, absmax, shape).T, stored["y"])
    index, absmax2, offset = nf4.quantize_absmax(absmax)
    assert torch.equal(index, stored["absmax_q"])
    torch.testing.assert_close(absmax2, stored["absmax2"], atol=1e-7, rtol=0)
    torch.testing.assert_close(offset, stored["absmax_offset"], atol=1e-7, rtol=0)
    double = nf4.dequantize(packed, nf4.dequantize_absmax(index, absmax2, offset), shape)
    torch.testing.assert_close(double, stored["dequant_double"], atol=1e-7, rtol=0)


GOLDEN = {"nf4": check_nf4}


def packed_layer(width: int = 48) -> Any:
    torch.manual_seed(0)
    linear: Any = nn.Linear(width, 20)
    swap_class(linear, NF4Linear)
    linear.pack("torch")
    linear.requires_grad_(False)
    return linear


def test_only_x_gets_a_gradient_and_nothing_is_kept() -> None:
    linear = packed_layer()
    x = torch.randn(2, 5, 48, requires_grad=True)
    with SavedBytes(linear) as saved:
        y = linear(x)
    assert saved.bytes == 0
    torch.testing.assert_close(y, x @ linear.dense().T + linear.bias)
    g = torch.randn_like(y)
    y.backward(g)
    torch.testing.assert_close(x.grad, g @ linear.dense())
    with pytest.raises(RuntimeError, match="floating point"):
        linear.weight.requires_grad_(True)


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.double()])
def test_casts_leave_the_bytes_alone(cast: Callable[[nn.Module], nn.Module]) -> None:
    linear = packed_layer()
    expected = linear.dense()
    cast(linear)
    assert torch.equal(linear.dense(), expected)


def test_vit_base_takes_44_megabytes() -> None:
    model = compose(METHODS["qlora"], task=Classification)(
        backbone="vit_base_patch16_224", pretrained=False, num_classes=100
    )
    model.configure_model()
    layers = [m for m in model.modules() if isinstance(m, NF4Linear)]
    assert sum(m.in_features * m.out_features for m in layers) == 84_934_656
    stored = sum(b.numel() * b.element_size() for m in layers for b in m.buffers(recurse=False))
    assert stored / 84_934_656 * 8 == pytest.approx(4.127, abs=2e-3)
    assert stored / 1e6 == pytest.approx(43.8, abs=0.1)
    assert type(model.backbone.head) is nn.Linear


def test_step_zero_is_the_rounded_backbone(build: Build) -> None:
    model = build("qlora", lora_targets=["qkv", "fc2"])
    plain = build("full").backbone.eval()
    model.configure_model()
    layers = {name: m for name, m in model.backbone.named_modules() if isinstance(m, NF4Linear)}
    assert len(layers) == 2 * 4
    assert {type(layers["blocks.0.attn.qkv"]), type(layers["blocks.0.attn.proj"])} == {QLoRALinear, NF4Linear}
    with torch.no_grad():
        for name, linear in layers.items():
            weight = plain.get_submodule(name).weight
            assert 0 < (linear.dense() - weight).abs().max() < 0.2 * weight.abs().max()
            weight.copy_(linear.dense())
        plain.head.load_state_dict(model.backbone.head.state_dict())
        images = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(model.eval()(images), plain(images), atol=1e-6, rtol=0)


def test_checkpoint_stays_a_delta(build: Build) -> None:
    model = build("qlora")
    model.configure_model()
    assert set(model.delta_state_dict()) == {
        *(f"backbone.blocks.{i}.attn.qkv.lora.{n}" for i in (0, 1) for n in ("A", "B")),
        "backbone.head.weight",
        "backbone.head.bias",
    }
    assert model.state_dict()["backbone.blocks.0.attn.qkv.weight"].dtype is torch.uint8


def test_merge_is_into_the_rounded_weight(build: Build) -> None:
    """Exact in fp32; another rounding to four bits would lose the update."""
    model = build("qlora", lora_alpha=2.0)
    model.configure_model()
    linear = model.backbone.blocks[0].attn.qkv
    nn.init.normal_(linear.lora.B, std=0.1)
    merged: Any = model.merge()
    weight = merged.blocks[0].attn.qkv.weight
    assert type(merged.blocks[0].attn.qkv) is nn.Linear
    torch.testing.assert_close(weight, linear.lora.merge_into(linear.dense()))
    again = nf4.dequantize(*nf4.quantize(weight), tuple(weight.shape))
    assert (again - weight).abs().max() > 1e-3


def tiny(*methods: str, **options: Any) -> PEFTMethod:
    torch.manual_seed(0)
    model = compose(*(METHODS[name] for name in methods), task=Classification)(
        backbone=BACKBONE, backbone_args=TINY, pretrained=False, num_classes=3, **options
    )
    model.configure_model()
    return model.eval()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_qdora_is_dora_on_the_rounded_weight(dropout: float) -> None:
    """Norms come from the rounded weight; ``--method qlora+dora``."""
    options: dict[str, Any] = {"lora_targets": ["q", "v", "fc1"], "lora_dropout": dropout, "lora_dropout_at": "input"}
    model = tiny("qlora", "dora", **options)
    layers = {n: m for n, m in model.backbone.named_modules() if isinstance(m, QDoRALinear)}
    assert len(layers) == 2 * 2
    other = tiny("dora", **options)
    with torch.no_grad():
        for name, linear in [(n, m) for n, m in model.backbone.named_modules() if isinstance(m, NF4Linear)]:
            plain = other.backbone.get_submodule(name)
            plain.weight.copy_(linear.dense())
            if name in layers:
                torch.testing.assert_close(
                    linear.lora.magnitude, torch.cat([linear.dense()[a:b].norm(dim=1) for a, b in linear.lora.rows])
                )
                plain.lora.reset(plain.weight)
                plain.lora.A.copy_(linear.lora.A)
        other.backbone.head.load_state_dict(model.backbone.head.state_dict())
        perturb(model), perturb(other)
        images = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(model(images), other(images), atol=1e-5, rtol=0)
        torch.testing.assert_close(model.merge()(images), model(images), atol=1e-5, rtol=0)
        model.train(), other.train()
        torch.manual_seed(5)
        found = model(images)
        torch.manual_seed(5)
        torch.testing.assert_close(found, other(images), atol=1e-5, rtol=0)


def test_biases_may_train_beside_it() -> None:
    model = tiny("qlora", "bitfit")
    model.loss(as_batch(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("stack", ["qlora+full", "full+qlora", "partial+qlora"])
def test_packed_weights_cannot_train(stack: str, build: Build) -> None:
    with pytest.raises(ValueError, match=r"attn\.proj\.weight, .* cannot train: only packed bytes are stored"):
        build(stack).configure_model()


def test_percentage_counts_packed_weights() -> None:
    assert tiny("qlora").total_parameters == tiny("lora").total_parameters


def test_bitsandbytes_is_optional(monkeypatch: pytest.MonkeyPatch, build: Build) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match="qlora_kernel='bitsandbytes': the package is not installed"):
        build("qlora", qlora_kernel="bitsandbytes")


@pytest.fixture
def bitsandbytes() -> Iterator[None]:
    """The package's operator: the real one where it is installed, else one of the same signature."""
    if importlib.util.find_spec("bitsandbytes"):
        importlib.import_module("bitsandbytes")
        yield
        return
    library = torch.library.Library("bitsandbytes", "DEF")
    library.define(
        "dequantize_4bit("
        "Tensor A, Tensor absmax, int blocksize, str quant_type, int[] shape, ScalarType dtype) -> Tensor"
    )

    def dequantize(
        A: Tensor, absmax: Tensor, blocksize: int, quant_type: str, shape: list[int], dtype: torch.dtype
    ) -> Tensor:
        assert A.shape == (A.numel(), 1)
        assert (blocksize, quant_type) == (64, "nf4")
        return nf4.dequantize(A.flatten(), absmax, tuple(shape), dtype)

    library.impl("dequantize_4bit", dequantize, "CPU")
    yield
    library._destroy()


@pytest.mark.usefixtures("bitsandbytes")
@pytest.mark.parametrize("width", [128, 48])
def test_bitsandbytes_reads_the_same_bytes(width: int) -> None:
    linear = packed_layer(width)
    expected = linear.dense()
    linear.kernel = "bitsandbytes"
    torch.testing.assert_close(linear.dense(), expected, atol=1e-6, rtol=0)
    assert linear.dense(torch.bfloat16).dtype is torch.bfloat16
