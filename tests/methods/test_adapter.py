"""Adapters."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_modules.classification import Classification
from methods import METHODS, PEFTMethod, compose
from methods.adapter import Adapter
from tests.support.batches import as_batch

Build = Callable[..., PEFTMethod]

COUNTS = {"vit_base_patch16_224": 156_768}
IDENTITY: dict[str, Any] | None = {"adapter_init": "lora"}

PLACES = ["houlsby", "pfeiffer", "noah", "adapter_plus"]


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"adapter_dim": 3}, 64_548),
        ({"adapter_dim": 12}, 230_544),
        ({"adapter_dim": 64}, 1_189_632),
        ({"adapter_placement": "noah"}, 156_768),
        ({"adapter_placement": "houlsby"}, 313_536),
        ({"adapter_placement": "adapter_plus"}, 156_768 + 12 * 768),
    ],
)
@pytest.mark.usefixtures("on_meta")
def test_counts(options: dict[str, Any], count: int) -> None:
    model = compose(Adapter, task=Classification)(backbone="vit_base_patch16_224", pretrained=False, **options)
    model.configure_model()
    assert model.parameter_counts()["method"] == count


@pytest.mark.parametrize("place", PLACES)
def test_placement(place: str, build: Build) -> None:
    """One block of every placement, against its formula."""
    model = build("adapter", adapter_placement=place, adapter_init="xavier")
    plain = build("linear_probe").backbone.blocks[0].eval()
    model.configure_model()
    block = model.backbone.blocks[0].eval()
    x = torch.randn(2, 5, 48)

    def update(site: str, o: torch.Tensor) -> torch.Tensor:
        op = block.get_submodule(f"{site}.adapter".lstrip("."))
        hidden = op.down(o)
        hidden = hidden * torch.sigmoid(1.702 * hidden) if place == "noah" else torch.nn.functional.gelu(hidden)
        return op.up(hidden)

    with torch.no_grad():
        o = plain.attn(plain.norm1(x))
        x1 = x + o + (update("attn", o) if place == "houlsby" else 0)
        m = plain.mlp(plain.norm2(x1))
        if place == "adapter_plus":
            block.adapter.scale.copy_(torch.randn(48))
            expected = x1 + m + block.adapter.scale * update("", x1 + m)
        else:
            expected = x1 + m + update("drop_path2" if place == "noah" else "mlp", m)
        torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=0)


def test_initial_weights(build: Build) -> None:
    def op(**options: Any) -> Any:
        model = build("adapter", adapter_dim=48, **options)
        model.configure_model()
        return next(m for m in model.backbone.modules() if hasattr(m, "adapter")).adapter

    houlsby = op()
    assert 0.005 < houlsby.up.weight.std() < 0.01
    assert houlsby.up.weight.abs().max() <= 0.02
    assert not houlsby.up.bias.any()
    noah = op(adapter_placement="noah")
    assert noah.up.weight.abs().max() > 0.2
    assert 0 < noah.up.bias.abs().max() < 1e-5
    assert noah.dropout.p == 0.1
    assert op(adapter_placement="adapter_plus").drop_path.drop_prob == 0.1
    lora = op(adapter_init="lora")
    assert lora.down.weight.any()
    assert not lora.up.weight.any()
    drawn_anew = op(adapter_placement="noah", adapter_init="trunc_normal")
    for linear in (drawn_anew.down, drawn_anew.up):  # 48 x 48, so that Xavier would have a std of 0.144
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not linear.bias.any()


def test_dead_zero_init_trains_one_bias_only(build: Build) -> None:
    with pytest.warns(UserWarning, match="only the bias of 'up' trains"):
        model = build("adapter", adapter_init="vpt_dead_zero")
    model.configure_model()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(50):
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(step)
        model.loss(as_batch(torch.randn(4, 3, 32, 32, generator=generator), torch.tensor([0, 1, 2, 0]))).backward()
        optimizer.step()
    for block in model.backbone.blocks:
        op = block.mlp.adapter
        assert not op.down.weight.any()
        assert not op.up.weight.any()
        assert op.up.bias.all()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("backbone", "args"),
    [
        ("swin_tiny_patch4_window7_224", {"img_size": 56, "embed_dim": 24, "depths": (1, 2), "num_heads": (2, 4)}),
        ("eva02_tiny_patch14_224", {"img_size": 28, "embed_dim": 48, "depth": 2, "num_heads": 2}),
    ],
)
def test_other_transformers(place: str, backbone: str, args: dict[str, Any], build: Build) -> None:
    options = {"backbone_args": args, "pretrained": False, "num_classes": 3}
    torch.manual_seed(0)
    model = compose(Adapter, task=Classification)(
        backbone=backbone, adapter_placement=place, adapter_init="lora", **options
    ).eval()
    images = torch.randn(2, 3, args["img_size"], args["img_size"])
    with torch.no_grad():
        expected = model(images)
        model.configure_model()
        assert torch.equal(model.eval()(images), expected)
    model.train().loss(as_batch(images, torch.tensor([0, 1]))).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_sub_net_of_noah(build: Build) -> None:
    """A size for each block of adapter, LoRA and prompts, 0 for none."""
    ranks = {"blocks.0.attn.qkv": 2, "blocks.1.attn.qkv": 0}
    sizes: dict[str, Any] = {"adapter_dims": [0, 3], "lora_ranks": ranks, "prompt_lengths": [4, 0]}
    model = build("adapter+lora+vpt", adapter_placement="noah", lora_targets=["qkv"], **sizes)
    model.configure_model()
    names = {name.removeprefix("backbone.blocks."): p for name, p in model.named_parameters() if p.requires_grad}
    adapter = {f"1.drop_path2.adapter.{layer}.{kind}" for layer in ("down", "up") for kind in ("weight", "bias")}
    added = {"0.prompt.tokens", "0.attn.qkv.lora.A", "0.attn.qkv.lora.B", *adapter}
    assert {name for name in names if "head" not in name} == added
    assert names["0.prompt.tokens"].shape == (4, 48)
    assert names["0.attn.qkv.lora.A"].shape == (2, 48)
    assert names["1.drop_path2.adapter.down.weight"].shape == (3, 48)
    model.train().loss(as_batch(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_refusals(build: Build) -> None:
    for sizes in ([8], [8, -1], [0, 0]):
        with pytest.raises(ValueError, match=r"adapter_dims=\[.*\]: expected a size for each of the 2 blocks"):
            build("adapter", adapter_dims=sizes).configure_model()
    with pytest.raises(ValueError, match="adapter_dim=0: expected a bottleneck of at least 1"):
        build("adapter", adapter_dim=0)
    model = compose(METHODS["adapter"], task=Classification)(backbone="starnet_s050", pretrained=False)
    with pytest.raises(ValueError, match="StarNet has no blocks with these places: use lora, ssf, bitfit or gps"):
        model.adapt_before_data()
