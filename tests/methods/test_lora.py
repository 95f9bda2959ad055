"""LoRA."""

import copy
from collections.abc import Callable
from typing import Any, Literal

import peft
import pytest
import torch
from torch import Tensor, nn

from callbacks.measures import SavedBytes
from commands.methods.families import FAMILIES
from commands.methods.families import build as build_family
from lightning_modules.classification import Classification
from methods import METHODS, PEFTMethod, compose
from methods.layers.low_rank import LowRank
from methods.layers.low_rank_layers import add_low_rank
from tests.conftest import BACKBONE, TINY, perturb
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
@pytest.mark.usefixtures("on_meta")
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


def test_initial_factors(build: Build) -> None:
    """Of q and v, whose factors lie one below the other in A (2 r, C) and B (2 C, r)."""

    def factors(init: str) -> tuple[Tensor, Tensor]:
        model = build("lora", lora_rank=24, lora_init=init)
        model.configure_model()
        lora = model.backbone.blocks[0].attn.qkv.lora
        return lora.A.detach(), lora.B.detach()

    A, B = factors("zero_b")
    assert A.abs().max() <= 48**-0.5
    assert not B.any()
    for factor in factors("trunc_normal"):
        assert float(factor.std()) == pytest.approx(0.02, rel=0.1)
    A, B = factors("orthogonal")
    for a, b in zip(A.chunk(2), B.chunk(2), strict=True):
        torch.testing.assert_close(a @ a.T, torch.eye(24), atol=1e-5, rtol=0)
        torch.testing.assert_close(b.T @ b, torch.eye(24), atol=1e-5, rtol=0)


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


@pytest.mark.parametrize("square", [False, True])
def test_torch_compile_gives_the_same_under_dropout(square: bool) -> None:
    """The gradient of x is the sum of two: through the frozen layer, and through the update."""
    torch.manual_seed(0)
    linear: Any = nn.Linear(12, 12 if square else 18)
    linear.weight.requires_grad_(False)
    add_low_rank(linear, LowRank(linear, 2, dropout=1e-9))  # drops nothing, but computes as with dropout
    nn.init.normal_(linear.lora.B)
    gradients = []
    for module in (linear, torch.compile(linear, backend="aot_eager")):
        x = torch.randn(3, 12, generator=torch.Generator().manual_seed(1)).requires_grad_()
        module(x).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


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
        (
            {"lora_targets": ["atn.proj"]},
            r"no linear layer's or convolution's name ends with 'atn\.proj'; near: attn\.proj, .*proj",
        ),
        ({"lora_targets": ["head"]}, "no linear layer's or convolution's name ends with 'head'"),
        ({"lora_targets": ["qkv", "v"]}, r"v covers rows of blocks\.0\.attn\.qkv twice"),
    ],
    ids=str,
)
def test_refusals(options: dict[str, Any], message: str, build: Build) -> None:
    with pytest.raises(ValueError, match=message):
        build("lora", **options).configure_model()


def adapted(family: str, method: str = "lora", **options: Any) -> Any:
    """A small member of a family with a new update in it."""
    entry = FAMILIES[family]
    model = compose(METHODS[method], task=Classification)(
        backbone=entry.model, backbone_args=copy.deepcopy(entry.args), pretrained=False, num_classes=3, **options
    )
    model.configure_model()
    return model


def check_step_and_merge(model: Any, family: str) -> None:
    """Every trained parameter gets a gradient; the merged model is the plain one with equal outputs."""
    images = torch.randn(2, 3, FAMILIES[family].size, FAMILIES[family].size)
    perturb(model)
    model.train().loss(as_batch(images, torch.tensor([0, 1]))).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    merged = model.merge()
    plain = build_family(family)
    assert list(merged.state_dict()) == list(plain.state_dict())
    assert [type(m) for m in merged.modules()] == [type(m) for m in plain.modules()]
    with torch.no_grad():
        expected, found = model.eval()(images), merged(images)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


# fused and apart, unequal parts, parts of heads one after another, a bias of its own; then networks without attention:
# padding of TensorFlow, standardised weights, depthwise and grouped convolutions
EVERY_FORM: list[Any] = ["pvt_v2", "efficientvit_msra", "levit", "maxxvit/coatnet", "beit", "swin_transformer_v2"]
EVERY_FORM += ["nfnet", "resnet", "efficientnet", "convnext", pytest.param("nasnet", marks=pytest.mark.matrix)]


@pytest.mark.parametrize("method", ["lora", "dora", "vera"])
@pytest.mark.parametrize("family", EVERY_FORM)
def test_default_targets(family: str, method: str) -> None:
    check_step_and_merge(adapted(family, method), family)


@pytest.mark.parametrize("family", ["levit", "maxxvit/coatnet", "beit", "resnet", "byoanet"])
@pytest.mark.parametrize("place", ["hidden", "input"])
def test_dropout_of_convolutions_and_parts_of_heads(family: str, place: str) -> None:
    check_step_and_merge(adapted(family, lora_dropout=0.3, lora_dropout_at=place), family)


def test_dropout_keeps_the_mean_of_a_convolution() -> None:
    """In training, the mean over many masks is the output of the merged weight."""
    model = adapted("resnet", lora_targets=["layer1.0.conv2"], lora_dropout=0.5)
    conv = model.backbone.layer1[0].conv2
    nn.init.normal_(conv.lora.B, std=0.1)
    x = torch.randn(1, conv.in_channels, 6, 6)
    with torch.no_grad():
        mean = torch.stack([conv.train()(x) for _ in range(4000)]).mean(0)
        torch.testing.assert_close(mean, conv.eval()(x), atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("family", "method", "options", "message"),
    [
        (
            "convnext",
            "lora",
            {"lora_dropout": 0.1},
            r"lora_dropout=0\.1: stages\.0\.blocks\.0\.conv_dw is a grouped conv",
        ),
        ("nfnet", "lora", {"lora_dropout": 0.1}, r"lora_dropout=0\.1: .* or standardises its weight"),
        ("resnet", "dora", {"lora_dropout": 0.1}, r"lora_dropout=0\.1: the magnitudes of .* act through its weight"),
        (
            "resnet",
            "lora",
            {"lora_targets": ["q"]},
            "name ends with 'q'.* or every layer of a network without attention",
        ),
        ("resnet", "qlora", {}, "QLoRA stores linear layers in four bits, and ResNet has none beside its classifier"),
        ("resnet", "lora", {"lora_rank": 5000}, "lora_rank=5000 is more than .* can have"),
    ],
    ids=str,
)
def test_refusals_of_convolutions(family: str, method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapted(family, method, **options)


def test_a_convolution_computes_what_peft_computes() -> None:
    """Count, outputs and gradients of peft's LoRA on convolutions, with a stride and without."""
    ends = ["layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.1"]
    model = adapted("resnet", lora_targets=ends, lora_rank=4, lora_alpha=8.0, lora_scaling="alpha/r")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=ends)
    theirs: Any = peft.get_peft_model(copy.deepcopy(model.merge()), config)
    perturb(model)
    pairs = [(model.backbone.get_submodule(end), theirs.base_model.model.get_submodule(end)) for end in ends]
    for ours, other in pairs:
        for name in ("A", "B"):
            weight = getattr(other, f"lora_{name}")["default"].weight
            weight.data.copy_(getattr(ours.lora, name).view_as(weight))
    count = sum(p.numel() for n, p in theirs.named_parameters() if "lora_" in n)
    assert model.parameter_counts()["method"] == count
    head = theirs.base_model.model.get_submodule(*model.head_names)
    head.load_state_dict(model.backbone.get_submodule(*model.head_names).state_dict())
    images = torch.randn(2, 3, 32, 32)
    found, expected = model.eval()(images), theirs.eval()(images)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    found.square().sum().backward()
    expected.square().sum().backward()
    for ours, other in pairs:
        for name in ("A", "B"):
            gradient = getattr(other, f"lora_{name}")["default"].weight.grad
            torch.testing.assert_close(getattr(ours.lora, name).grad, gradient.flatten(1), atol=1e-5, rtol=1e-3)


def test_refuses_a_second_update(build: Build) -> None:
    model = compose(METHODS["lora"], METHODS["fact"], task=Classification)(
        backbone="vit_tiny_patch16_224", backbone_args={"img_size": 32, "depth": 1}, pretrained=False, num_classes=3
    )
    with pytest.raises(ValueError, match="has a child 'lora' already"):
        model.configure_model()


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_starts_of_peft(init: Literal["pissa", "olora"], build: Build) -> None:
    """Factors, logits and frozen weights, where peft moves the start into the frozen weight."""
    targets = ["qkv", "fc1"]
    model: Any = build(
        "lora", lora_targets=targets, lora_rank=4, lora_alpha=8.0, lora_scaling="alpha/r", lora_init=init
    )
    plain = copy.deepcopy(model.backbone)
    model.configure_model()
    weights = plain.state_dict()
    assert all(
        torch.equal(tensor, weights[name]) for name, tensor in model.backbone.state_dict().items() if name in weights
    )
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=init)
    theirs: Any = peft.get_peft_model(copy.deepcopy(plain), config)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), plain.eval()(x), atol=1e-5, rtol=0)
    perturb(model)
    for name, module in theirs.base_model.model.named_modules():
        if hasattr(module, "lora_A"):
            ours = model.backbone.get_submodule(name).lora
            A, B = module.lora_A["default"].weight.data, module.lora_B["default"].weight.data
            torch.testing.assert_close(ours.A0, A, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(ours.B0, B, atol=1e-5, rtol=1e-4)
            A.copy_(ours.A.data)
            B.copy_(ours.B.data)
    theirs.base_model.model.head.load_state_dict(model.backbone.head.state_dict())
    with torch.no_grad():
        expected = theirs.eval()(x)
        torch.testing.assert_close(model.eval()(x), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(model.merge()(x), expected, atol=1e-5, rtol=0)


def test_principal_start_of_q_and_v_in_files_and_in_bf16(build: Build) -> None:
    """Each block of rows has the best approximation of rank r as its start, which a file holds in fp32."""
    model: Any = build("lora", lora_rank=4, lora_alpha=3.0, lora_init="pissa")
    model.configure_model()
    qkv = model.backbone.blocks[0].attn.qkv
    for part, (A0, B0) in zip((0, 2), zip(qkv.lora.A0.chunk(2), qkv.lora.B0.chunk(2), strict=True), strict=True):
        U, S, V = torch.linalg.svd(qkv.weight.detach().chunk(3)[part])
        torch.testing.assert_close(3 * B0 @ A0, U[:, :4] * S[:4] @ V[:4], atol=1e-5, rtol=0)
    perturb(model)
    model.to(torch.bfloat16)
    assert qkv.weight.dtype is torch.bfloat16
    delta = model.delta_state_dict()
    assert delta["backbone.blocks.0.attn.qkv.lora.A0"].dtype is torch.float32
    again: Any = build("lora", lora_rank=4, lora_alpha=3.0, lora_init="pissa", pretrained=False)
    again.configure_model()
    again.load_state_dict(again.state_dict() | delta)
    for ours, loaded in zip(qkv.lora.factors(), again.backbone.blocks[0].attn.qkv.lora.factors(), strict=True):
        assert torch.equal(ours, loaded)


def test_rate_of_b(build: Build) -> None:
    model = build("lora", lr=0.1, lora_b_lr_scale=16.0, weight_decay=0.5)
    model.configure_model()
    names = {id(p): name.removeprefix("backbone.") for name, p in model.named_parameters()}
    rates = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in model.param_groups() for p in g["params"]}
    assert len(rates) == 6
    assert {rate for name, rate in rates.items() if name.endswith("lora.B")} == {(1.6, 0.5)}
    assert {rates["blocks.0.attn.qkv.lora.A"], rates["head.weight"]} == {(0.1, 0.5)}
    with pytest.raises(ValueError, match=r"lora_b_lr_scale=0\.0: expected a positive factor"):
        build("lora", lora_b_lr_scale=0.0)
    with pytest.raises(ValueError, match=r"lora_init=pissa with lora_dropout=0\.1: expected lora_dropout_at input"):
        build("lora", lora_init="pissa", lora_dropout=0.1)
