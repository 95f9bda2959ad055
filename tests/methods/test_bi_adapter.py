"""Bi-AdaptFormer and Bi-LoRA, and the low-bit matrices below them."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backbones.inject import swap_class
from callbacks.ema import EMA
from commands.lightning.recipes import read_recipe
from lightning_modules.classification import Classification
from methods import METHODS, PEFTMethod, compose
from methods.bi_adapter import LowBit, LowBitLinear, LowBitLowRank
from methods.layers import low_bit
from methods.layers.low_rank import LowRank
from tests.conftest import perturb
from tests.methods.layers.test_low_bit import CODEBOOKS, CPU
from tests.methods.test_lora import Part
from tests.support.batches import as_batch
from tests.support.golden import Golden, head_parameters

COUNTS = {
    "vit_base_patch16_224": 589_824,
    "swin_base_patch4_window7_224": 2 * 32 * (2 * 128 + 2 * 256 + 18 * 512 + 2 * 1024),
}
IDENTITY: dict[str, Any] | None = {"bi_bits": 32}  # quantised, the initial output differs a little
Build = Callable[..., PEFTMethod]


def part_of(golden: Golden, prefix: str) -> Golden:
    """One of the two models of the fixture."""
    part = copy.copy(golden)
    part.tensors = golden.tensors | golden.part(prefix)
    return part


def check_quantiser(golden: Golden) -> None:
    for bits in (1, 2, 4, 8):
        stored = golden.part(f"quant.{bits}bit")
        for kind in CODEBOOKS[bits == 8 :]:
            levels, thresholds = low_bit.codebook(bits, kind, CPU)
            torch.testing.assert_close(levels, stored["codes"], atol=1e-5, rtol=0)
            torch.testing.assert_close(thresholds, stored["thresholds"], atol=1e-5, rtol=0)
            latent = stored["latent"].requires_grad_()
            found = low_bit.effective(latent, bits, kind)
            torch.testing.assert_close(found, stored["effective"], atol=1e-6, rtol=0)
            (gradient,) = torch.autograd.grad(found, latent, stored["upstream_grad"])
            torch.testing.assert_close(gradient, stored["latent_grad"], atol=1e-6, rtol=0)
            written = low_bit.write_record(latent, bits, kind)
            assert written[:-8] == stored["packed"].numpy().tobytes()
            moments = torch.frombuffer(bytearray(written[-8:]), dtype=torch.float32)
            torch.testing.assert_close(moments, stored["mean_std"], atol=1e-6, rtol=0)


def check_blob(golden: Golden, model: Any) -> None:
    blob = golden.tensors["packed_blob"].numpy().tobytes()
    records = model.records()
    assert low_bit.write_payload(model.stored(), records, "official") == blob
    assert sum(record.nbytes for record in records) == len(blob) == model.storage_bytes()


def check_adaptformer(golden: Golden) -> None:
    golden = part_of(golden, "af")
    weights = golden.part("peft")
    model: Any = golden.build(
        "bi_adapter",
        bi_bits=int(golden.tensors["bits"]),
        bi_dim=weights["blocks.0.adapter.down.weight"].shape[0],
        bi_scale=float(golden.tensors["scale"]),
        bi_codebook="official",
    )
    ours = {name: model.backbone.get_parameter(name) for name in weights}
    assert {id(p) for p in ours.values()} == {id(p) for p in model.parameters() if p.requires_grad}
    for name, value in weights.items():
        ours[name].data.copy_(value)
    golden.check_logits(model)
    golden.check_gradients(model, ours | head_parameters(model))
    check_blob(golden, model)


def check_lora(golden: Golden) -> None:
    golden = part_of(golden, "lora")
    weights = golden.part("peft")
    model: Any = golden.build(
        "bi_adapter",
        bi_form="lora",
        bi_bits=int(golden.tensors["bits"]),
        bi_dim=weights["blocks.0.attn.lora_q.down.weight"].shape[0],
        bi_scale=float(golden.tensors["scale"]),
        bi_head="head.bias" not in weights,
        bi_codebook="official",
    )
    ours: dict[str, Any] = {}
    for name, value in weights.items():
        if name.startswith("head"):
            ours[name] = model.backbone.get_parameter(name)
            ours[name].data.copy_(value)
            continue
        _, block, _, kind, way, _ = name.split(".")
        lora = model.backbone.blocks[int(block)].attn.qkv.lora
        first = "qv".index(kind[-1]) * len(value)
        ours[name] = Part(lora.A if way == "down" else lora.B, slice(first, first + len(value)))
        ours[name].set(value)
    golden.check_logits(model)
    golden.check_gradients(model, ours)
    golden.check_merge(model)
    check_blob(golden, model)


def check(golden: Golden) -> None:
    check_quantiser(golden)
    check_adaptformer(golden)
    check_lora(golden)


GOLDEN = {"bi_adapter": check}


# sizes


def vit_base(**options: Any) -> Any:
    model = compose(METHODS["bi_adapter"], task=Classification)(
        backbone="vit_base_patch16_224", pretrained=False, **options
    )
    model.configure_model()
    return model


@pytest.mark.parametrize(
    ("form", "dim", "count", "stored"),
    [
        ("adaptformer", 1, 18_432, 2_496),
        ("adaptformer", 8, 147_456, 18_624),
        ("adaptformer", 32, 589_824, 73_920),
        ("lora", 1, 36_864, 4_992),
        ("lora", 8, 294_912, 37_248),
        ("lora", 32, 1_179_648, 147_840),
    ],
)
@pytest.mark.usefixtures("on_meta")
def test_counts_and_bytes(form: str, dim: int, count: int, stored: int) -> None:
    """The published files, of any number of classes K: adapters, and 4 x 769 K or 96 K + 8 bytes of classifier."""
    classes = 397
    model = vit_base(bi_form=form, bi_dim=dim, num_classes=classes)
    assert model.parameter_counts() == {"method": count, "neck": 0, "head": 769 * classes}
    assert model.storage_bytes() == stored + 4 * 769 * classes
    assert sum(record.nbytes for record in model.records(head=True)) == stored + 96 * classes + 8
    matrices = 24 if form == "adaptformer" else 48
    for bits in (2, 4, 8):
        adapter = sum(record.nbytes for record in model.records(bits)) - 4 * 769 * classes
        assert adapter == bits * (stored - 8 * matrices) + 8 * matrices


@pytest.mark.parametrize(
    ("options", "stored"),
    [
        ({"num_classes": 100, "bi_head": True}, 83_528),
        ({"num_classes": 2, "bi_dim": 1, "bi_head": True}, 2_696),
        ({"num_classes": 100, "bi_form": "lora", "bi_head": True}, 157_448),
    ],
)
def test_bytes_of_published_files(options: dict[str, Any], stored: int) -> None:
    assert vit_base(**options).storage_bytes() == stored


# the method


def adapted(build: Build, **options: Any) -> Any:
    model = build("bi_adapter", **options)
    model.configure_model()
    perturb(model)
    return model


IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
LABELS = torch.tensor([0, 1, 2, 0])
FORMS = ("adaptformer", "lora")
every_form = pytest.mark.parametrize("form", FORMS)


@pytest.mark.parametrize("form", FORMS)
def test_32_bits_are_the_plain_adapter(form: str, build: Build) -> None:
    """Bit for bit, in a training step with dropout and in evaluation."""
    model = build("bi_adapter", bi_form=form, bi_bits=32, bi_dim=8, bi_scale=0.5)
    if form == "lora":
        other = build("lora", lora_rank=8, lora_alpha=0.5, lora_dropout=0.1)
    else:
        other = build("adaptformer", adaptformer_dim=8, adaptformer_scale=0.5)
    outputs = []
    for each in (model, other):
        torch.manual_seed(1)
        each.configure_model()
        perturb(each)
        torch.manual_seed(2)
        each.train().loss(as_batch(IMAGES, LABELS)).backward()
        gradients = [p.grad for p in each.parameters() if p.requires_grad]
        outputs.append([each.eval()(IMAGES), *gradients])
    assert all(torch.equal(one, another) for one, another in zip(*outputs, strict=True))


@every_form
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_start(form: str, bits: int, build: Build) -> None:
    """Close to the frozen backbone, and every matrix gets a gradient in all of its entries."""
    model: Any = build("bi_adapter", bi_form=form, bi_bits=bits, bi_scale=0.1)
    with torch.no_grad():
        plain = model.eval()(IMAGES)
    model.configure_model()
    with torch.no_grad():
        assert 0 < (model.eval()(IMAGES) - plain).abs().max() < 0.01
    for name, latent in model.stored().items():
        if name.endswith("up"):
            assert 0 < latent.abs().max() <= 2e-3
            assert float(latent.detach().std()) == pytest.approx(8.8e-4, rel=0.1)  # of a normal cut at two std
        elif name.endswith("down"):
            assert 0.9 < latent.abs().max() * 48**0.5 <= 1
    model.train().loss(as_batch(IMAGES, LABELS)).backward()
    assert all((p.grad != 0).all() for n, p in model.named_parameters() if p.requires_grad and "head" not in n)


@every_form
def test_one_bit_classifier(form: str, build: Build) -> None:
    model = adapted(build, bi_form=form, bi_head=True, bi_bits=4)
    head = model.backbone.head
    weight = low_bit.effective(head.weight, 1, "l1_optimal")
    assert len(weight.unique()) == 2
    x = torch.randn(2, 48)
    torch.testing.assert_close(head(x), x @ weight.T)
    assert set(model.delta_state_dict()) & {"backbone.head.weight", "backbone.head.bias"} == {"backbone.head.weight"}
    assert model.parameter_counts()["head"] == 3 * 48
    model.train().loss(as_batch(IMAGES, LABELS)).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_one_bit_classifier_over_widths(build: Build) -> None:
    model: Any = build("bi_adapter+width_scaling", bi_head=True, width_base=16)
    model.configure_model()
    layers = {id(p): group["layer_type"] for group in model.param_groups() for p in group["params"]}
    assert layers[id(model.backbone.head.weight)] == "readout"


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("bits", [1, 8, 32])
def test_bi_lora_merges(bits: int, head: bool, build: Build) -> None:
    model = adapted(build, bi_form="lora", bi_bits=bits, bi_head=head, bi_scale=0.7).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = model.merge()
    with torch.no_grad():
        torch.testing.assert_close(merged(IMAGES), model(IMAGES), atol=1e-5, rtol=0)
    assert set(merged.state_dict()) == model.plain_keys
    assert type(merged.head) is nn.Linear
    assert vars(merged.head).keys() == vars(build("full").backbone.head).keys()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    # rows of q and v, nothing of k
    difference = merged.blocks[0].attn.qkv.weight - model.backbone.blocks[0].attn.qkv.weight
    names = {f"blocks.0.attn.lora_{kind}" for kind in "qv"}
    matrices = {
        name: latent if bits == 32 else low_bit.effective(latent, bits, "l1_optimal")
        for name, latent in model.stored().items()
        if name.rpartition(".")[0] in names
    }
    update = [0.7 * matrices[f"{name}.up"] @ matrices[f"{name}.down"] for name in sorted(names)]
    torch.testing.assert_close(difference, torch.cat([update[0], torch.zeros(48, 48), update[1]]), atol=1e-6, rtol=0)


def test_bi_adaptformer_does_not_merge(build: Build) -> None:
    with pytest.raises(TypeError, match="cannot be merged because"):
        adapted(build).merge()


@every_form
def test_swin(form: str) -> None:
    arguments = {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}
    model: Any = compose(METHODS["bi_adapter"], task=Classification)(
        backbone="swin_tiny_patch4_window7_224",
        backbone_args=arguments,
        pretrained=False,
        num_classes=3,
        bi_form=form,
        bi_dim=8,
        bi_head=True,
    )
    model.configure_model()
    perturb(model)
    model.train().loss(as_batch(IMAGES, LABELS)).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    kinds = 2 if form == "adaptformer" else 4
    assert len(model.records()) == 4 * kinds + 1
    assert {record.shape for record in model.records()} == {(8, 24), (24, 8), (8, 48), (48, 8), (3, 48)}
    if form == "lora":
        with torch.no_grad():
            torch.testing.assert_close(model.merge()(IMAGES), model.eval()(IMAGES), atol=1e-5, rtol=0)


# matrices that an evaluation keeps


def make_layer(kind: type[LowBit]) -> Any:
    torch.manual_seed(0)
    layer: Any = nn.Linear(12, 6, bias=False)
    if kind is LowBitLowRank:
        layer = LowRank(nn.Linear(12, 18), 2, 1.7, ((0, 6), (12, 18)))
        nn.init.normal_(layer.B)
    swap_class(layer, kind)
    layer.bits, layer.codebook = 2, "l1_optimal"
    return layer.eval()


every_layer = pytest.mark.parametrize("kind", [LowBitLinear, LowBitLowRank])


def fresh(layer: Any) -> list[Tensor]:
    with torch.no_grad():
        return list(layer.quantised_latents())


@every_layer
@pytest.mark.parametrize("quiet", [torch.no_grad, torch.inference_mode])
def test_an_evaluation_makes_its_matrices_once(kind: type[LowBit], quiet: Any) -> None:
    layer = make_layer(kind)
    with quiet():
        first = layer.matrices()
        assert all(a is b for a, b in zip(first, layer.matrices(), strict=True))
    assert not any(matrix.is_inference() for matrix in first)
    assert all(matrix.requires_grad for matrix in layer.matrices()), "in eval mode with gradients they are made anew"
    layer.train()
    with quiet():
        assert all(a is not b for a, b in zip(layer.matrices(), layer.matrices(), strict=True))
        assert layer.cached is None


def step(layer: Any) -> None:
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, fused=True)  # fused: counts no version up
    layer.train()
    sum(matrix.square().sum() for matrix in layer.matrices()).backward()
    optimizer.step()
    optimizer.zero_grad()
    layer.eval()


def step_in_eval_mode(layer: Any) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, fused=True)
    sum(matrix.square().sum() for matrix in layer.matrices()).backward()
    optimizer.step()
    optimizer.zero_grad()


def load(layer: Any, assign: bool = False) -> None:
    layer.load_state_dict({name: tensor + 1 for name, tensor in layer.state_dict().items()}, assign=assign)


@torch.no_grad()
def write(layer: Any) -> None:
    for parameter in layer.parameters():
        parameter += 1


def write_data(layer: Any) -> None:
    layer.train()
    for parameter in layer.parameters():
        parameter.data.copy_(parameter + 1)
    layer.eval()


@every_layer
@pytest.mark.parametrize(
    "change",
    [step, step_in_eval_mode, load, lambda layer: load(layer, True), write, write_data, lambda layer: layer.double()],
    ids=["step", "step in eval mode", "load", "load and assign", "write", "write data", "cast"],
)
def test_kept_matrices_follow_the_latents(kind: type[LowBit], change: Callable[[Any], None]) -> None:
    layer = make_layer(kind)
    with torch.no_grad():
        before = layer.matrices()
    change(layer)
    with torch.no_grad():
        after = layer.matrices()
    assert all(torch.equal(a, b) for a, b in zip(after, fresh(layer), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_averages_that_are_swapped_in(build: Build) -> None:
    """As the EMA callback does, through ``.data``, around a validation and at the end of a fit."""
    model = adapted(build).train()
    average = {n: p.detach() + 0.1 * torch.randn_like(p) for n, p in model.named_parameters() if p.requires_grad}
    layers = [module for module in model.modules() if isinstance(module, LowBit)]
    for _ in range(3):
        EMA(0.9).swap(model, average)
        model.eval()
        with torch.no_grad():
            for layer in layers:
                assert all(torch.equal(a, b) for a, b in zip(layer.matrices(), layer.quantised_latents(), strict=True))
        model.train()


@every_form
def test_bf16_quantises_in_fp32(form: str, build: Build) -> None:
    model = adapted(build, bi_form=form, bi_bits=8)
    expected = [layer.quantised_latents() for layer in model.modules() if isinstance(layer, LowBit)]
    model.to(torch.bfloat16)
    found = [layer.quantised_latents() for layer in model.modules() if isinstance(layer, LowBit)]
    with torch.autocast("cpu", torch.bfloat16):
        found += [layer.quantised_latents() for layer in model.modules() if isinstance(layer, LowBit)]
    for one, other in zip(found, [*expected, *expected], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bi_bits": 3}, "bi_bits=3: expected 1, 2, 4, 8, or 32 for no quantisation"),
        ({"bi_bits": 16}, "bi_bits=16: expected 1"),
        ({"bi_dim": 0}, "bi_dim=0: expected a bottleneck of at least 1 channel"),
        ({"bi_form": "lora", "bi_dim": 49}, r"bi_dim=49 is more than blocks\.0\.attn\.qkv can have: expected 1 to 48"),
        ({"bi_scale": 0.0}, "bi_scale=0.0: expected a positive factor"),
        ({"bi_dropout": 1.0}, "bi_dropout=1.0: expected a probability"),
        ({"bi_form": "convpass"}, "bi_form='convpass': expected adaptformer or lora"),
        ({"bi_codebook": "l2"}, "bi_codebook='l2': expected l1_optimal or official"),
        ({"bi_head": True, "head_init": "zero"}, "bi_head: the classifier head must be a linear layer whose initial"),
    ],
    ids=str,
)
def test_refusals(options: dict[str, Any], message: str, build: Build) -> None:
    with pytest.raises(ValueError, match=message):
        build("bi_adapter", **options).configure_model()


@pytest.mark.parametrize(
    ("form", "message"), [("adaptformer", "no transformer blocks with norms"), ("lora", "no linear layers qkv")]
)
def test_other_backbones_are_refused(form: str, message: str) -> None:
    model = compose(METHODS["bi_adapter"], task=Classification)(
        backbone="resnet18", pretrained=False, num_classes=3, bi_form=form
    )
    with pytest.raises(ValueError, match=message):
        model.configure_model()


@pytest.mark.parametrize(
    ("recipe", "scales"),
    [
        ("adaptformer_32", ".1 10 .01 1 .01 10 .1 1 1 10 1 1 .1 1 1 1 .1 1 1"),
        ("adaptformer_32_bihead", ".1 10 .1 1 .01 10 .1 1 1 10 1 1 .1 1 1 1 10 10 1"),
        ("adaptformer_1", "1 10 1 1 1 100 1 10 10 1 100 10 10 10 10 10 10 10 10"),
        ("adaptformer_1_bihead", "1 10 1 10 1 100 10 10 10 1 10 10 10 100 100 10 10 100 100"),
        ("lora_32", ".1 10 .01 1 .1 10 .1 10 10 10 10 1 .1 10 10 1 .1 10 1"),
        ("lora_32_bihead", ".01 10 1 1 .01 10 .01 10 1 10 .1 1 .1 10 10 1 10 10 1"),
        ("lora_1", "1 100 1 100 1 100 1 10 100 1 1 10 10 100 100 100 100 100 100"),
        ("lora_1_bihead", "1 100 1 100 .1 100 1 10 100 1 100 10 1 100 100 100 100 100 100"),
    ],
)
def test_published_scales(recipe: str, scales: str) -> None:
    """Of the 19 tasks, in the order of the published tables."""
    content = read_recipe(f"vtab/bi_adapter_{recipe}")
    assert [flags["model.bi_scale"] for flags in content["tasks"].values()] == [float(s) for s in scales.split()]
    form, dim, *head = recipe.split("_")
    options = content["all"]
    assert (options["model.bi_form"], options["model.bi_dim"], options["model.bi_head"]) == (form, int(dim), bool(head))
