"""LoRA."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from callbacks.measures import SavedBytes
from lightning_modules.classification import Classification
from methods import METHODS, PEFTMethod, compose
from methods.layers.low_rank import LowRank
from tests.conftest import BACKBONE, TINY
from tests.methods.layers.test_low_rank import layer
from tests.support.batches import as_batch
from tests.support.golden import LOGITS, Golden, head_parameters

COUNTS = {
    "vit_base_patch16_224": 294_912,
    "vit_tiny_patch16_224": 73_728,
    "swin_base_patch4_window7_224": 4 * 8 * (2 * 128 + 2 * 256 + 18 * 512 + 2 * 1024),
}
IDENTITY: dict[str, Any] | None = {}
Build = Callable[..., PEFTMethod]


class Part:
    """Rows of a parameter that holds several of the fixture's; its gradient is those of the parameter's."""

    def __init__(self, parameter: Tensor, index: Any) -> None:
        self.parameter, self.index = parameter, index

    def set(self, value: Tensor) -> None:
        self.parameter.data[self.index] = value

    @property
    def grad(self) -> Tensor | None:
        return None if self.parameter.grad is None else self.parameter.grad[self.index]


def check_frozen(golden: Golden) -> None:
    with torch.no_grad():
        plain = golden.plain_backbone()(golden.tensors["input"])
    torch.testing.assert_close(plain, golden.tensors["frozen_logits"], atol=LOGITS, rtol=0)


def check_separate(golden: Golden) -> None:
    """q and v with an A and a B each."""
    check_frozen(golden)
    values = golden.part("peft")
    targets = sorted({name.split(".")[3].removeprefix("lora_") for name in values}, key="qkv".index)
    rank = next(value for name, value in values.items() if name.endswith("down.weight")).shape[0]
    model = golden.build(
        "lora", lora_targets=targets, lora_rank=rank, lora_alpha=golden.config["method"]["scale"], lora_scaling="alpha"
    )
    ours = {}
    for name, value in values.items():
        _, block, _, kind, way, _ = name.split(".")
        lora = model.backbone.blocks[int(block)].attn.qkv.lora
        parameter = lora.A if way == "down" else lora.B
        size, place = value.shape[0], targets.index(kind.removeprefix("lora_"))
        ours[name] = Part(parameter, slice(place * size, (place + 1) * size))
        ours[name].set(value)
    golden.check_logits(model)
    golden.check_gradients(model, ours | head_parameters(model))  # type: ignore[arg-type]
    golden.check_merge(model)


def copy_from_peft(model: PEFTMethod, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take over all low-rank values by HF PEFT's names; returns our parameters by these names."""
    ours: dict[str, Tensor] = {}
    for name, value in values.items():
        layer, _, kind = name.rpartition(".")
        ours[name] = model.backbone.get_parameter(f"{layer}.lora.{kind.removeprefix('lora_')}")
        ours[name].data.copy_(value)
    assert len(ours) == sum(".lora." in name for name, _ in model.backbone.named_parameters())
    return ours


def check_fused(golden: Golden, method: str = "lora") -> None:
    """One A and one B of whole layers, as in HF PEFT; the same for DoRA, which adds magnitudes."""
    check_frozen(golden)
    values, settings = golden.part("peft"), golden.config["method"]
    targets = sorted({name.rpartition(".")[0].rpartition(".")[2] for name in values})
    model = golden.build(
        method,
        lora_targets=targets,
        lora_rank=settings["rank"],
        lora_alpha=float(settings["alpha"]),
        lora_scaling="alpha/r",
    )
    ours = copy_from_peft(model, values)
    golden.check_logits(model)
    golden.check_gradients(model, ours | head_parameters(model))
    golden.check_merge(model)


GOLDEN = {"lora_qv": check_separate, "lora_qkv_fused": check_fused}


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"lora_rank": 4}, 147_456),
        ({"lora_rank": 16}, 589_824),
        ({"lora_targets": ["qkv"]}, 294_912),
        ({"lora_targets": ["qkv", "proj", "fc1", "fc2"], "lora_rank": 4}, 589_824),
        ({"lora_targets": ["qkv", "proj", "fc1", "fc2"]}, 1_179_648),
        ({"lora_ranks": {"blocks.0.attn.qkv": 4}}, 294_912 - 4 * 4 * 768),
    ],
)
def test_counts(options: dict[str, Any], count: int) -> None:
    model = compose(METHODS["lora"], task=Classification)(
        backbone="vit_base_patch16_224", pretrained=False, num_classes=100, **options
    )
    model.configure_model()
    assert model.parameter_counts()["method"] == count


@pytest.mark.parametrize(
    ("scaling", "scale"), [("alpha", 6.0), ("alpha/r", 6.0 / 4), ("alpha/sqrt(r)", 6.0 / 2)], ids=lambda v: str(v)
)
def test_scaling(scaling: str, scale: float, build: Build) -> None:
    model = build("lora", lora_rank=4, lora_alpha=6.0, lora_scaling=scaling)
    model.configure_model()
    lora = model.backbone.blocks[1].attn.qkv.lora
    assert lora.scale == pytest.approx(scale)
    plain = build("lora").backbone.blocks[1].attn.qkv.weight
    nn.init.normal_(lora.B)
    merged = model.merge().blocks[1].attn.qkv.weight  # type: ignore[union-attr, operator, index]
    (a_q, a_v), (b_q, b_v) = lora.A.chunk(2), lora.B.chunk(2)
    update = torch.cat([b_q @ a_q, torch.zeros(48, 48), b_v @ a_v])
    torch.testing.assert_close(merged, plain + scale * update)


class Floor(PEFTMethod):
    """A backbone through which gradients must pass while almost nothing trains."""

    def trainable_names(self) -> list[str]:
        return ["cls_token"]


def test_nothing_but_the_input_is_kept() -> None:
    """One C per token and layer more than a backbone through which gradients pass."""
    saved_bytes = []
    for bases in ((Floor, Classification), (METHODS["lora"], Floor, Classification)):
        model = type("Task", bases, {})(backbone=BACKBONE, backbone_args=TINY, pretrained=False, num_classes=3)
        model.configure_model()
        with SavedBytes(model) as saved:
            model.train().loss(as_batch(torch.randn(6, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2])))
        saved_bytes.append(saved.bytes)
    assert saved_bytes[1] - saved_bytes[0] == 2 * 6 * 17 * 48 * 4  # layers, images, tokens, C, bytes


def test_biases_may_train_beside_it(build: Build) -> None:
    model = compose(METHODS["lora"], METHODS["bitfit"], task=Classification)(
        backbone="vit_tiny_patch16_224", backbone_args={"img_size": 32, "depth": 1}, pretrained=False, num_classes=3
    )
    model.configure_model()
    model.loss(as_batch(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_every_target_of_swin() -> None:
    arguments = {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}
    model = compose(METHODS["lora"], task=Classification)(
        backbone="swin_tiny_patch4_window7_224",
        backbone_args=arguments,
        pretrained=False,
        num_classes=3,
        lora_targets=["q", "k", "proj", "fc1", "fc2"],
    )
    model.configure_model()
    images = torch.randn(2, 3, 32, 32)
    for module in model.modules():
        if isinstance(module, LowRank):
            nn.init.normal_(module.B, std=0.05)
    names = {name.rpartition(".")[0] for name, _ in model.backbone.named_modules() if name.endswith(".lora")}
    assert len(names) == 4 * 4
    assert "layers.1.blocks.1.attn.qkv" in names
    assert not any("downsample" in name or "patch_embed" in name for name in names)
    with torch.no_grad():
        torch.testing.assert_close(model.merge()(images), model.eval()(images), atol=1e-5, rtol=0)


def test_torch_compile_gives_the_same() -> None:
    linear = layer(((0, 6), (12, 18))).float()
    x = torch.randn(3, 12)
    compiled = torch.compile(linear, backend="aot_eager")
    torch.testing.assert_close(compiled(x), linear(x))
    linear.zero_grad()
    compiled(x).sum().backward()
    found = linear.lora.A.grad.clone()
    linear.zero_grad()
    linear(x).sum().backward()
    torch.testing.assert_close(found, linear.lora.A.grad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_rank": 0}, "lora_rank=0: expected a positive rank"),
        ({"lora_ranks": {"qkv": -1}}, "-1: expected a positive rank"),
        ({"lora_ranks": {"qkv": 0}}, "leaves no layer of lora_targets an update"),
        ({"lora_ranks": {"qkv": 49}}, r"lora_ranks=49 is more than blocks\.0\.attn\.qkv can have"),
        ({"lora_ranks": {"fc1": 2}}, "lora_ranks names fc1, which no layer of lora_targets ends with"),
        ({"lora_rank": 49}, r"lora_rank=49 is more than blocks\.0\.attn\.qkv can have: expected 1 to 48"),
        ({"lora_alpha": 0.0}, "lora_alpha=0.0: expected a positive number"),
        ({"lora_dropout": 1.0}, "lora_dropout=1.0: expected a probability"),
        ({"lora_targets": []}, "lora_targets is empty"),
        ({"lora_targets": ["atn.proj"]}, r"no linear layer's name ends with 'atn\.proj'; near: attn\.proj, .*proj"),
        ({"lora_targets": ["head"]}, "no linear layer's name ends with 'head'"),
        ({"lora_targets": ["qkv", "v"]}, r"v covers rows of blocks\.0\.attn\.qkv twice"),
    ],
    ids=str,
)
def test_refusals(options: dict[str, Any], message: str, build: Build) -> None:
    with pytest.raises(ValueError, match=message):
        build("lora", **options).configure_model()


def test_refuses_a_layer_that_is_never_called() -> None:
    """timm's BEiT adds its bias itself, and reads the weight of qkv instead of calling it."""
    model = compose(METHODS["lora"], task=Classification)(
        backbone="beit_base_patch16_224", backbone_args={"depth": 1, "embed_dim": 48}, pretrained=False, num_classes=3
    )
    assert isinstance(model.backbone, timm.models.Beit)
    with pytest.raises(ValueError, match=r"uses the weight of blocks\.0\.attn\.qkv"):
        model.configure_model()


def test_refuses_a_second_update(build: Build) -> None:
    model = compose(METHODS["lora"], METHODS["fact"], task=Classification)(
        backbone="vit_tiny_patch16_224", backbone_args={"img_size": 32, "depth": 1}, pretrained=False, num_classes=3
    )
    with pytest.raises(ValueError, match="has a child 'lora' already"):
        model.configure_model()
