"""LAST. No official code is known: the fixture pins our reading of the paper."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from backbones.inject import Tap
from callbacks.measures import SavedBytes
from lightning_modules.classification import Classification
from methods import PEFTMethod, compose
from methods.last import LAST, Norm
from tests.support.batches import as_batch
from tests.support.golden import Golden

Build = Callable[..., PEFTMethod]

COUNTS = {"vit_base_patch16_224": 608_256}
IDENTITY: dict[str, Any] | None = {}


def check_last(golden: Golden) -> None:
    tensors = golden.tensors
    gap, depth, rank, classes, members = tensors["cfg"].long().tolist()[5:]
    golden.config["backbone"]["num_classes"] = classes
    width = tensors["backbone.norm.weight"].shape[0]
    tensors |= {"backbone.head.weight": torch.zeros(classes, width), "backbone.head.bias": torch.zeros(classes)}
    for member in range(members):
        options = {"last_gap": gap, "last_depth": depth, "last_rank": rank} | golden.config["method"]
        model: Any = golden.build("last", **options)
        names = {f"blocks.{name}": p for name, p in model.side.named_parameters()}
        names |= {f"head.{name}": p for name, p in model.backbone.head.named_parameters()}
        weights = golden.part(f"peft.{member}")
        assert names.keys() == weights.keys()
        with torch.no_grad():
            for name, parameter in names.items():
                parameter.copy_(weights[name])
        maps = model.token_maps(tensors["input"])
        for index, z in enumerate(maps):
            torch.testing.assert_close(z, tensors[f"z.{index}"], atol=1e-5, rtol=0)
        torch.testing.assert_close(model.side_tokens(maps), tensors[f"tokens.{member}"], atol=1e-5, rtol=0)
        one = {key: tensors[f"{key}.{member}"] for key in ("logits", "loss")}
        one |= {f"grad.{name}": gradient for name, gradient in golden.part(f"grad.peft.{member}").items()}
        golden.tensors = {"input": tensors["input"], "label": tensors["label"]} | one
        golden.check_logits(model)
        golden.check_gradients(model, names)
        golden.tensors = tensors


GOLDEN = {"last": check_last}


@pytest.mark.parametrize(
    ("gap", "depth", "rank", "count"),
    [
        (1, 1, 4, 165_888),
        (1, 1, 8, 313_344),
        (1, 1, 32, 1_198_080),
        (1, 2, 8, 626_688),
        (2, 1, 16, 304_128),
        (2, 2, 16, 608_256),
        (3, 1, 32, 399_360),
    ],
)
@pytest.mark.usefixtures("on_meta")
def test_counts(gap: int, depth: int, rank: int, count: int) -> None:
    side = {"last_gap": gap, "last_depth": depth, "last_rank": rank}
    model = compose(LAST, task=Classification)(backbone="vit_base_patch16_224", pretrained=False, **side)
    model.configure_model()
    assert model.parameter_counts() == {"method": count, "neck": 0, "head": 769_000}


@pytest.mark.usefixtures("on_meta")
def test_count_with_biases() -> None:
    model = compose(LAST, task=Classification)(backbone="vit_base_patch16_224", pretrained=False, last_bias=True)
    model.configure_model()
    assert model.parameter_counts()["method"] == 618_048


def test_norm() -> None:
    """In fp32 to the last bit that of torch; in bf16 only the kept tokens are rounded."""
    x, weight, bias = (torch.randn(shape, requires_grad=True) for shape in ((2, 5, 48), (48,), (48,)))
    g = torch.randn(2, 5, 48)
    y = F.layer_norm(x, (48,), weight, bias, 1e-6)
    expected = torch.autograd.grad(y, (x, weight, bias), g)
    for dtype, tolerance in {torch.float32: 0.0, torch.bfloat16: 2e-2}.items():
        found = Norm.apply(x, weight, bias, 1e-6, dtype)
        assert torch.equal(found, y)
        for one, other in zip(torch.autograd.grad(found, (x, weight, bias), g), expected, strict=True):
            torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


def other(args: dict[str, Any], **options: Any) -> Any:
    """A model on another backbone than that of all tests."""
    task = compose(LAST, task=Classification)
    return task(backbone="vit_tiny_patch16_224", backbone_args=args, pretrained=False, num_classes=3, **options)


def trained(build: Build, **options: Any) -> Any:
    """A model whose side network does something."""
    model = build("last", **options)
    model.configure_model()
    with torch.no_grad():
        for parameter in model.side.parameters():  # type: ignore[union-attr]
            parameter += 0.3 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize(("gap", "depth"), [(1, 1), (1, 3), (2, 2)])
def test_residual_form_is_the_plain_one(gap: int, depth: int, heads: int, build: Build) -> None:
    """The recursion of the paper, term by term, and attention written out."""
    model = trained(build, last_gap=gap, last_depth=depth, last_heads=heads)
    maps = model.token_maps(torch.randn(3, 3, 32, 32))
    u = maps[0]
    for z, modules in zip(maps[1:], model.side, strict=True):
        u = u + z
        for m in modules:
            a = F.layer_norm(u, u.shape[-1:], m.norm.weight, m.norm.bias, 1e-6)
            parts = [(a @ f.weight.T).chunk(heads, dim=-1) for f in (m.q, m.k, m.v)]
            width = parts[0][0].shape[-1]
            attended = [(q @ k.mT / width**0.5).softmax(-1) @ v for q, k, v in zip(*parts, strict=True)]
            u = u + torch.cat(attended, dim=-1) @ m.up.weight.T
    torch.testing.assert_close(model.side_tokens(maps), u - sum(maps[:-1]), atol=1e-4, rtol=0)


def test_no_gradient_enters_the_backbone(build: Build) -> None:
    model = trained(build).train()
    assert not any(module.training for module in model.backbone.modules())
    images = torch.randn(4, 3, 32, 32)
    assert not any(z.requires_grad for z in model.token_maps(images))
    model.loss(as_batch(images, torch.tensor([0, 1, 2, 0]))).backward()
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trains
    assert all(name.startswith(("side.", "backbone.head.")) for name in trains)
    model.backbone.blocks[0].norm1.weight.requires_grad_(True)  # no_grad keeps even a stray one out
    assert not any(z.requires_grad for z in model.token_maps(images))


def test_saved_activations_do_not_grow_with_the_backbone() -> None:
    saved = []
    for ratio in (1.0, 8.0):
        torch.manual_seed(0)
        options = {"embed_dim": 48, "depth": 2, "num_heads": 3, "mlp_ratio": ratio}
        model = other(options)
        model.configure_model()
        with SavedBytes(model) as counted:
            loss = model.train().loss(as_batch(torch.randn(2, 3, 224, 224), torch.tensor([0, 1])))
        del loss
        saved.append(counted.bytes)
    assert saved[0] == saved[1] > 0


def test_backbone_drops_nothing_in_training() -> None:
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "proj_drop_rate": 0.5}
    model = other(args, drop_path=0.9)
    model.configure_model()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.train()(images), model.eval()(images))


def test_drawn_up_projections_and_dropout(build: Build) -> None:
    model: Any = build("last", last_up_init="xavier", last_bias=True, last_dropout=0.5)
    model.configure_model()
    up = model.side[0][0].up
    assert 0.9 * (6 / (16 + 48)) ** 0.5 < up.weight.abs().max() <= (6 / (16 + 48)) ** 0.5
    assert not up.bias.any()
    images = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model.train()(images), model(images))
    assert torch.equal(model.eval()(images), model(images))


@pytest.mark.parametrize(
    "args", [{"global_pool": "avg"}, {"class_token": False, "global_pool": "avg"}, {"pre_norm": True, "reg_tokens": 4}]
)
def test_other_poolings_and_tokens(args: dict[str, Any]) -> None:
    tiny = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    model = other(tiny | args).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
        model.configure_model()
        assert torch.equal(model.eval()(images), expected)


@pytest.mark.parametrize(
    "backbone",
    [
        "vit_small_patch16_dinov3",
        "eva02_tiny_patch14_224",
        "beit_base_patch16_224",
        "vit_base_patch16_siglip_224",
        "naflexvit_base_patch16_gap",
        "vit_relpos_small_patch16_224",
    ],
)
def test_training_starts_as_a_linear_probe_of_other_families(backbone: str) -> None:
    tiny = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    model = compose(LAST, task=Classification)(backbone=backbone, backbone_args=tiny, pretrained=False, num_classes=3)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.eval()(images)
        model.configure_model()
        torch.testing.assert_close(model.eval()(images), expected)
    model.train().loss(as_batch(images, torch.tensor([0, 1]))).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_refusals(build: Build) -> None:
    with pytest.raises(ValueError, match=r"last_gap=3 does not divide the 2 blocks here; use one of 1, 2"):
        build("last", last_gap=3).configure_model()
    with pytest.raises(ValueError, match="last_rank=0: expected at least 1"):
        build("last", last_rank=0)
    with pytest.raises(ValueError, match="last_heads=3: expected a number that divides last_rank=16"):
        build("last", last_heads=3)
    with pytest.raises(ValueError, match=r"last_dropout=1\.0: expected a probability below 1"):
        build("last", last_dropout=1.0)
    model = compose(LAST, task=Classification)(backbone="convnext_atto", pretrained=False)
    with pytest.raises(
        ValueError, match=r"LAST reads the tokens of a plain ViT, and ConvNeXt is not known to have one sequence"
    ):
        model.configure_model()


def test_taps_keep_nothing(build: Build) -> None:
    model: Any = build("last")
    model.configure_model()
    model(torch.randn(2, 3, 32, 32))
    kept: list[Tensor | None] = [m.kept for m in model.backbone.modules() if isinstance(m, Tap)]
    assert kept == [None, None, None]
