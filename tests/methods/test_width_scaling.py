"""Width scaling of a model: optimizer groups, initial weights and multipliers, against the spec's oracles."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning import Trainer
from torch import Tensor
from torch.nn import functional as F

from datamodules import ImageDataset
from lightning_modules.optim.adam_atan2 import AdamATan2
from methods import METHODS, PEFTMethod
from methods.layers.exponents import (
    ALIGNMENTS,
    FAMILIES,
    LAYERS,
    PARAMETERIZATIONS,
    build_param_groups,
    exponents,
)
from methods.width_scaling import rescale
from tests.conftest import BACKBONE, STACK, TINY, TINY_OPTIONS, composed
from tests.methods.layers.test_exponents import draw, shapes
from tests.support.batches import as_batch

Build = Callable[..., PEFTMethod]
Data = Callable[..., ImageDataset]
MakeTrainer = Callable[..., Trainer]
WIDE: dict[str, Any] = TINY | {"embed_dim": 96, "num_heads": 6}  # k = 2 over the tiny backbone, heads of 16

every_parameterization = pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)


COUNTS: dict[str, int] = {}  # adds no parameter; with LoRA at the base width they are LoRA's
IDENTITY: dict[str, Any] = {}


def plain(method: str = "full", **options: Any) -> Any:
    """A method on a random backbone of twice the tiny one's width, adapted."""
    torch.manual_seed(0)
    defaults = {"pretrained": False, "num_classes": 3, "backbone": BACKBONE, "backbone_args": WIDE}
    model = composed(method)(**defaults | options)
    model.configure_model()
    return model


def wide(method: str = "full", **options: Any) -> Any:
    """A method with width scaling, by default from half its width; see ``plain``."""
    return plain(f"{method}+width_scaling", **{"width_base": 48} | options)


# the optimizer's groups


@every_parameterization
@pytest.mark.parametrize("optimizer", FAMILIES)
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_at_the_base_width_nothing_changes(parameterization: str, optimizer: str, alignment: str) -> None:
    model: Any = wide(
        width_parameterization=parameterization,
        optimizer=optimizer,
        width_alignment=alignment,
        width_base=96,
        width_eps_per_layer=True,
    )
    assert {group["lr"] for group in model.param_groups()} == {model.lr}
    assert {group.get("eps", 1e-8) for group in model.param_groups()} == {1e-8}
    for name, parameter in plain().named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name
    assert not [module for module in model.modules() if "multiplier" in module._modules]


def test_layers_of_a_vit() -> None:
    """The spec's table for a ViT at widths 128 and 64 with heads of 32."""
    vit: dict[str, Any] = TINY | {"embed_dim": 128, "num_heads": 4}
    model: Any = wide(width_parameterization="mup", backbone_args=vit, width_base=64)
    kinds = {id(p): (g["layer_type"], g["k"]) for g in model.param_groups() for p in g["params"]}
    found = {name.removeprefix("backbone."): kinds[id(p)] for name, p in model.named_parameters()}
    for name, kind in found.items():
        if name == "head.bias":
            assert kind == ("constant", 1)
        elif name == "head.weight":
            assert kind == ("readout", 2)
        elif name.endswith("weight") and any(part in name for part in ("qkv", "attn.proj", "fc1", "fc2")):
            assert kind == ("hidden", 2), name
        else:
            assert kind == ("embedding", 2), name
    assert len(found) == len(timm.create_model(BACKBONE, num_classes=3, **vit).state_dict())


@pytest.mark.parametrize(("optimizer", "lr"), [("adamw", 1.0), ("sgd", 2.0), ("adafactor", 1.0)])
def test_a_vector_without_a_multiplier_has_the_equivalent_rate(optimizer: str, lr: float) -> None:
    """In muP c of embeddings is 1/2 for Adam; without its multiplier 0, and -1 for SGD."""
    model: Any = wide(width_parameterization="mup", optimizer=optimizer, lr=1.0)
    groups = {id(p): group for group in model.param_groups() for p in group["params"]}
    assert groups[id(model.backbone.pos_embed)]["lr"] == lr
    assert groups[id(model.backbone.norm.weight)]["lr"] == lr
    multiplied = {"adamw": 2**-0.5, "sgd": 1.0, "adafactor": 1.0}[optimizer]
    assert groups[id(model.backbone.patch_embed.proj.weight)]["lr"] == pytest.approx(multiplied)


def test_lora_at_a_larger_width() -> None:
    model: Any = wide("lora", width_parameterization="standard", lr=1.0)
    groups = {id(p): (g["layer_type"], g["lr"]) for g in model.param_groups() for p in g["params"]}
    lora = model.backbone.blocks[0].attn.qkv.lora
    assert groups[id(lora.A)] == ("readout", 0.5)
    assert groups[id(lora.B)] == ("embedding", 1.0)


@pytest.mark.parametrize("method", METHODS)
def test_groups_of_every_method(method: str, build: Build) -> None:
    """Every trained parameter in exactly one group, frozen ones in none, names unlike."""
    from tests.methods.test_contract import adapt

    options: dict[str, Any] = {"width_parameterization": "standard", "width_base": 16, "weight_decay": 0.5}
    stack = STACK[method] if method == "width_scaling" else f"{STACK[method]}+width_scaling"
    if not getattr(METHODS[method], "scales_over_widths", True):
        with pytest.raises(ValueError, match="trains single entries or gates, for which there is no rule over widths"):
            build(stack, **options)
        return
    model = build(stack, **TINY_OPTIONS.get(method, {}) | options)
    adapt(method, model)
    groups = model.param_groups()  # type: ignore[operator]
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert len({group["name"] for group in groups}) == len(groups)
    for group in groups:
        assert all((p.squeeze().dim() > 1) == (group["weight_decay"] > 0) for p in group["params"])
        rate = 1e-2 / group["k"] if group["layer_type"] in ("hidden", "readout") else 1e-2
        assert group["lr"] == pytest.approx(rate)
        assert group["k"] == (1.0 if group["layer_type"] == "constant" else 3.0)


# initial weights and multipliers


@pytest.mark.parametrize("head_init", ["trunc_normal", "linear"])
def test_initial_weights(head_init: str) -> None:
    """Constant or by the fan-in already: at any width the std is what the parameterization says."""
    args = TINY | {"embed_dim": 192, "num_heads": 12}
    for parameterization, table in PARAMETERIZATIONS.items():
        model: Any = wide(
            width_parameterization=parameterization, backbone_args=args, head_init=head_init, num_classes=500
        )
        base: Any = plain(backbone_args=TINY, head_init=head_init, num_classes=500)
        layers = {"patch_embed.proj": "embedding", "blocks.1.mlp.fc2": "hidden", "head": "readout"}
        for name, layer in layers.items():
            here, there = (m.backbone.get_submodule(name).weight.std().item() for m in (model, base))
            assert here / there == pytest.approx(4 ** -table[layer][1], rel=0.05), (parameterization, name)


@every_parameterization
def test_merged_model_equals_the_one_with_multipliers(parameterization: str) -> None:
    model: Any = wide(width_parameterization=parameterization).eval()
    images = torch.randn(2, 3, 32, 32)
    merged = model.merge()
    assert set(merged.state_dict()) == set(timm.create_model(BACKBONE, num_classes=3, **WIDE).state_dict())
    assert not any(module._forward_pre_hooks for module in merged.modules())
    with torch.no_grad():
        torch.testing.assert_close(merged(images), model(images), atol=1e-6, rtol=0)


def train(parameterization: str, optimizer: str, steps: int, k: int = 4) -> list[float]:
    """Losses of the three layers at k times the base width of 16."""
    torch.manual_seed(0)
    base, model = draw(16), draw(16 * k)
    rescale(model, base, parameterization)
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(64, 12, generator=generator), torch.randint(0, 3, (64,), generator=generator)
    rates = {"lr": {"adam": 1e-2, "adam_atan2": 1e-2, "sgd": 0.1}[optimizer], "eps": 1e-16}
    groups = build_param_groups(model, shapes(base), parameterization, optimizer, **rates)
    kinds = {"adam": torch.optim.Adam, "adam_atan2": AdamATan2, "sgd": torch.optim.SGD}
    run: torch.optim.Optimizer = kinds[optimizer](groups)
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(model(images), labels)
        run.zero_grad()
        loss.backward()
        run.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("optimizer", ["adam", "adam_atan2", "sgd"])
@pytest.mark.parametrize(("first", "second"), [("standard", "ntk"), ("mup", "mean_field")])
def test_equivalent_parameterizations(first: str, second: str, optimizer: str) -> None:
    losses = train(first, optimizer, steps=20)
    assert losses == pytest.approx(train(second, optimizer, steps=20), abs=1e-5)
    assert losses[-1] < losses[0]
    assert train("mup" if first == "standard" else "standard", optimizer, steps=1) != pytest.approx(losses[:1])


@pytest.mark.parametrize("parameterization", ["mup", "mean_field"])
def test_gradients_shrink_as_told(parameterization: str) -> None:
    """Slopes of the gradients' entry sizes at the start over widths 256 to 2048."""
    sizes: dict[str, list[float]] = {layer: [] for layer in LAYERS}
    widths = [256, 512, 1024, 2048]
    for width in widths:
        torch.manual_seed(2)
        base, model = draw(256, std=0.08), draw(width, std=0.08)
        rescale(model, base, parameterization)
        F.cross_entropy(model(torch.randn(64, 12)), torch.randint(0, 3, (64,))).backward()
        for layer in LAYERS:
            gradient = model.get_submodule(layer).weight.grad
            assert isinstance(gradient, Tensor)
            sizes[layer].append(math.log2(float(gradient.square().mean().sqrt())))
    expected = exponents(parameterization, "adam", "full")
    for layer, values in sizes.items():
        slope = -(values[-1] - values[0]) / math.log2(widths[-1] / widths[0])
        assert slope == pytest.approx(expected[layer].g, abs=0.15), layer


def changes(parameterization: str, width: int, steps: int = 5, **options: Any) -> dict[str, float]:
    """Sizes of what layers of a ViT put out, by how much it has changed after some steps of Adam."""
    vit: dict[str, Any] = TINY | {"embed_dim": width, "num_heads": width // 16, "weight_init": "jax"}
    task: dict[str, Any] = {"backbone_args": vit, "head_init": "linear", "lr": 1e-3}
    scaling = {"width_parameterization": parameterization, "width_base": 64} | options
    model: Any = plain(**task) if parameterization == "none" else wide(**task | scaling)
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(16, 3, 32, 32, generator=generator), torch.arange(16) % 3
    outputs: dict[str, list[Tensor]] = {}
    for name in ("patch_embed.proj", "blocks.0", "blocks.1.attn.proj", "blocks.1.mlp.fc1", "blocks.1", "head"):
        seen = outputs.setdefault(name, [])
        module = model.backbone.get_submodule(name)
        module.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output.detach()))
    optimizer = torch.optim.Adam(model.param_groups(), lr=model.lr, eps=1e-16)
    for _ in range(steps + 1):
        optimizer.zero_grad()
        model.loss(as_batch(images, labels)).backward()
        optimizer.step()
    return {name: (seen[-1] - seen[0]).square().mean().sqrt().item() for name, seen in outputs.items()}


def slopes(parameterization: str, **options: Any) -> dict[str, float]:
    """Exponents of the width in what ``changes`` says, from 64 to 512."""
    narrow, broad = (changes(parameterization, width, **options) for width in (64, 512))
    return {name: math.log2(broad[name] / narrow[name]) / math.log2(512 / 64) for name in narrow}


@pytest.mark.parametrize("parameterization", ["mup", "mean_field"])
def test_changes_of_a_vit_do_not_depend_on_its_width(parameterization: str) -> None:
    """The coordinate check."""
    assert all(abs(slope) < 0.15 for slope in slopes(parameterization).values())


@pytest.mark.parametrize("parameterization", ["standard", "ntk"])
def test_changes_of_logits_in_the_standard_parameterization(parameterization: str) -> None:
    """Its rates count on a readout that the features' changes do not align with; in five steps on a batch they do."""
    found = slopes(parameterization)
    logits = found.pop("head")
    assert all(abs(slope) < 0.2 for slope in found.values())
    assert 0.15 < logits < 0.5
    assert slopes(parameterization, width_readout_alignment=1.0)["head"] < 0.15


def test_changes_grow_with_the_width_at_one_rate() -> None:
    found = slopes("none")
    assert min(found["blocks.1"], found["head"]) > 0.3


# through Lightning


def fitted(model: Any, trainer: MakeTrainer, data: Data) -> Any:
    run = trainer(max_epochs=1)
    run.fit(model, datamodule=data())
    return run


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_standard_at_its_own_width_trains_bit_for_bit(
    optimizer: str, build: Build, data: Data, trainer: MakeTrainer
) -> None:
    options = {"optimizer": optimizer, "lr": 1e-2, "weight_decay": 0.1}
    plain, scaled = (
        build("full", **options),
        build("full+width_scaling", width_parameterization="standard", width_base=48, **options),
    )
    assert [len(fitted(model, trainer, data).optimizers[0].param_groups) for model in (plain, scaled)] == [2, 2]
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, scaled.get_parameter(name)), name


def test_rates_through_a_fit_and_a_resumed_one(build: Build, data: Data, trainer: MakeTrainer, tmp_path: Path) -> None:
    options = {"width_parameterization": "standard", "width_base": 16, "lr": 1e-2, "warmup_epochs": 0.5}
    run = fitted(build("ssf+width_scaling", **options), trainer, data)
    rates = {group["layer_type"]: group["initial_lr"] for group in run.optimizers[0].param_groups}
    assert rates == pytest.approx({"embedding": 1e-2, "readout": 1e-2 / 3, "constant": 1e-2})
    run.save_checkpoint(tmp_path / "one epoch.ckpt")
    longer = trainer(max_epochs=2)
    longer.fit(build("ssf+width_scaling", **options), datamodule=data(), ckpt_path=tmp_path / "one epoch.ckpt")
    (optimizer,) = longer.optimizers
    assert {g["layer_type"]: g["initial_lr"] for g in optimizer.param_groups} == pytest.approx(rates)


@every_parameterization
def test_a_checkpoint_brings_its_multipliers(
    parameterization: str, data: Data, trainer: MakeTrainer, tmp_path: Path
) -> None:
    model = wide(width_parameterization=parameterization, lr=1e-2, optimizer="adam_atan2")
    run = fitted(model, trainer, data)
    run.save_checkpoint(tmp_path / "model.ckpt")
    again = PEFTMethod.load_from_checkpoint(tmp_path / "model.ckpt").eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(images), model.eval()(images))


# bad input


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"width_parameterization": "mup", "width_base": None}, "'mup' needs a width_base"),
        ({"width_parameterization": "spectral"}, "parameterization='spectral'"),
        (
            {"width_parameterization": "mup", "width_base": 50},
            "width_base=50: expected a multiple of the size of a head, 16",
        ),
        ({"width_parameterization": "mup", "width_base": {"depth": 3}}, "in width only, not in depth"),
        ({"width_parameterization": "mup", "width_base": {"width": 3}}, "timm makes no such model"),
        (
            {"width_parameterization": "mup", "width_base": {"embed_dim": 48}},
            r"head size \{8\} in the base model, \{16\} in the model",
        ),
        (
            {"width_parameterization": "mup", "width_lr_constants": {"hidden": 0.0}},
            r"width_lr_constants\['hidden'\]=0\.0: expected a positive",
        ),
        ({"width_parameterization": "standard", "backbone": "resnet18", "backbone_args": {}}, "has not one width"),
    ],
)
def test_refused_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        wide(**options)


def test_pretrained_weights_are_not_rescaled(build: Build) -> None:
    with pytest.raises(ValueError, match="use width_parameterization=standard, which then scales learning rates only"):
        build("full+width_scaling", width_parameterization="mup", width_base=16)
    plain, scaled = build("full"), build("full+width_scaling", width_parameterization="standard", width_base=16)
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, scaled.get_parameter(name)), name


def test_a_weight_that_is_read_past_its_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reads .*weight without calling the layer"):
        wide(
            width_parameterization="ntk",
            backbone="swinv2_tiny_window8_256",
            backbone_args={"img_size": 64, "window_size": 2, "embed_dim": 32, "depths": (1, 1), "num_heads": (2, 4)},
            width_base={"embed_dim": 16, "num_heads": (1, 2)},
        )
