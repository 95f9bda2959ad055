"""HST."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.classification import Classification
from methods import PEFTMethod, compose
from methods.hst import HST
from tests.conftest import checkpoint_of
from tests.support.batches import as_batch
from tests.support.golden import Golden

Build = Callable[..., PEFTMethod]

COUNTS = {"vit_base_patch16_224": 764_840, "vit_large_patch16_224": 1_360_544}
IDENTITY: dict[str, Any] | None = None  # the side network predicts alone, from random weights

PLACES = {
    "stem.conv1": "side.stages.0.shrink.layers.0",
    "stem.bn": "side.stages.0.shrink.layers.1",
    "stem.conv2": "side.stages.0.shrink.layers.3",
    "stem.norm": "side.stages.0.shrink.norm",
    "head_bn": "head_norm",
    "head": "backbone.head",
}


def place(name: str, ends: list[int]) -> str:
    """Our name of a tensor of the reference file."""
    path, _, kind = name.rpartition(".")
    first, *rest = path.split(".")
    if path in PLACES:
        path = PLACES[path]
    elif first == "blocks":
        path = f"backbone.{path}"
    elif first == "meta_norm":
        stage = next(s for s, end in enumerate(ends) if int(rest[0]) <= end)
        start = ends[stage - 1] + 1 if stage else 0
        path = f"side.stages.{stage}.meta_norms.{int(rest[0]) - start}"
    elif first == "down":
        path = f"side.stages.{rest[0]}.shrink.{'layers.0' if rest[1] == 'proj' else 'norm'}"
    elif first == "stage":
        path = ".".join(["side.stages", rest[0], "blocks", *rest[1:]])
    else:
        path = f"side.stages.{rest[0]}.{ {'bridge': 'bridge', 'stage_norm': 'norm'}[first] }"
    return f"{path}.{kind}"


def check_hst(golden: Golden) -> None:
    tensors, weights = golden.tensors, golden.part("peft")
    cfg: list[int] = tensors["cfg"].long().tolist()
    meta_tokens, classes, dims, heads, ends = cfg[5], cfg[6], cfg[7:11], cfg[11:15], cfg[15:]
    golden.config["backbone"]["num_classes"] = classes
    width = tensors["backbone.norm.weight"].shape[0]
    tensors |= {"backbone.head.weight": torch.zeros(classes, width), "backbone.head.bias": torch.zeros(classes)}
    model: Any = golden.build(
        "hst", hst_dims=dims, hst_heads=heads, hst_ends=ends, meta_tokens=meta_tokens, **golden.config["method"]
    )
    assert model.ends(len(model.backbone.blocks)) == ends
    state = model.state_dict()
    for name, tensor in weights.items():
        if not name.startswith("meta_tokens"):
            state[place(name, ends)].copy_(tensor)
    state["meta.tokens"].copy_(torch.cat([weights[f"meta_tokens.{i}"] for i in range(ends[-1] + 1)]))
    golden.check_logits(model)
    for stage, feature in enumerate(model.pyramid(*model.frozen_features(tensors["input"]))):
        torch.testing.assert_close(feature, tensors[f"feature.{stage}"], atol=1e-5, rtol=0)

    model.train()
    logits = model(tensors["input"])
    torch.testing.assert_close(logits, tensors["logits_train"], atol=1e-5, rtol=0)
    loss = F.cross_entropy(logits, tensors["label"])
    torch.testing.assert_close(loss.view(1), tensors["loss_train"], atol=1e-5, rtol=0)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    found = golden.part("grad.peft") | golden.part("grad.backbone")
    meta = torch.cat([found.pop(f"meta_tokens.{i}") for i in range(ends[-1] + 1)])
    expected = {place(name, ends): gradient for name, gradient in found.items()} | {"meta.tokens": meta}
    assert set(expected) == set(gradients)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    for name, buffer in golden.part("after_train").items():
        torch.testing.assert_close(state[place(name, ends)], buffer, atol=1e-5, rtol=0)


GOLDEN = {"hst": check_hst}


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"tune_norm": False}, 727_976),
        ({"meta_tokens": 2}, 774_056),
        ({"meta_tokens": 32}, 1_050_536),
        ({"hst_dims": [64, 128, 256, 384]}, 10_404_096),
    ],
)
@pytest.mark.usefixtures("on_meta")
def test_counts(options: dict[str, Any], count: int) -> None:
    model = compose(HST, task=Classification)(backbone="vit_base_patch16_224", pretrained=False, **options)
    model.configure_model()
    assert model.parameter_counts() == {
        "method": count,
        "neck": 0,
        "head": (options.get("hst_dims", [72])[-1] + 1) * 1000,
    }


def small(**options: Any) -> Any:
    torch.manual_seed(0)
    args = {"img_size": 48, "patch_size": 12, "embed_dim": 32, "depth": 8, "num_heads": 4}
    sizes = {"hst_dims": [8, 12, 16, 24], "hst_heads": [2, 3, 4, 6], "num_classes": 5}
    options = sizes | {"backbone": "vit_tiny_patch16_224", "backbone_args": args} | options
    model: Any = compose(HST, task=Classification)(pretrained=False, **options)
    model.configure_model()
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return model


def test_what_trains() -> None:
    model = small()
    trained = {name for name, p in model.backbone.named_parameters() if p.requires_grad}
    norms = {f"blocks.{i}.{n}.{kind}" for i in range(8) for n in ("norm1", "norm2") for kind in ("weight", "bias")}
    assert trained == norms | {"head.weight", "head.bias"}
    decayed = model.param_groups()[0]["params"]
    assert any(p is model.meta.tokens for p in decayed)  # as in the released code
    bound = (6 / (32 + 32)) ** 0.5
    assert 0.9 * bound < model.meta.tokens.abs().max() <= bound


def test_shapes_of_the_pyramid() -> None:
    model = small()
    shapes = [tuple(m.shape[1:]) for m in model.pyramid(*model.frozen_features(torch.randn(2, 3, 48, 48)))]
    assert shapes == [(8, 12, 12), (12, 6, 6), (16, 3, 3), (24, 2, 2)]
    args = {"img_size": 48, "patch_size": 12, "embed_dim": 32, "depth": 8, "num_heads": 4, "dynamic_img_size": True}
    other = small(backbone_args=args)
    shapes = [tuple(m.shape[2:]) for m in other.pyramid(*other.frozen_features(torch.randn(2, 3, 36, 84)))]
    assert shapes == [(9, 21), (5, 11), (3, 6), (2, 3)]


def test_registers_are_dropped() -> None:
    args = {"img_size": 28, "patch_size": 7, "embed_dim": 48, "depth": 4, "num_heads": 3}
    model = small(backbone="vit_small_patch14_reg4_dinov2", backbone_args=args)
    assert model.backbone.num_prefix_tokens == 5
    assert model(torch.randn(2, 3, 28, 28)).shape == (2, 5)


@pytest.mark.parametrize("backbone", ["vit_small_patch16_dinov3", "eva02_tiny_patch14_224", "vit_tiny_patch16_224"])
def test_outputs_of_blocks_with_meta_tokens(backbone: str) -> None:
    """The published form: each block gets new meta tokens behind the prefix tokens, which are not rotated."""
    args = {"img_size": 28, "patch_size": 7, "embed_dim": 48, "depth": 4, "num_heads": 3}
    model = small(backbone=backbone, backbone_args=args, meta_tokens=2).eval()
    images, vit, tokens = torch.randn(2, 3, 28, 28), model.backbone, model.meta.tokens
    with torch.no_grad():
        _, *outputs = model.frozen_features(images)
        model.build()
        vit, state = model.backbone.eval(), vit.state_dict()
        vit.load_state_dict({n: t for n, t in state.items() if not n.startswith("head.")}, strict=False)
        embedded, n = vit._pos_embed(vit.patch_embed(images)), vit.num_prefix_tokens
        x, rope = embedded if isinstance(embedded, tuple) else (embedded, None)
        for block, new, output in zip(vit.blocks, tokens, outputs, strict=True):
            if rope is not None:
                block.attn.num_prefix_tokens += 2
            x = torch.cat([x[:, :n], new.expand(2, -1, -1), x[:, n:]], dim=1)
            x = block(x) if rope is None else block(x, rope=rope)
            torch.testing.assert_close(output, x[:, n:], atol=1e-5, rtol=0)
            x = torch.cat([x[:, :n], x[:, n + 2 :]], dim=1)


@pytest.mark.parametrize(
    "backbone",
    [
        "vit_small_patch16_dinov3",
        "beit_base_patch16_224",
        "vit_base_patch16_siglip_224",
        "naflexvit_base_patch16_gap",
        "vit_relpos_small_patch16_224",
    ],
)
def test_training_on_other_families(backbone: str) -> None:
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}
    model = small(backbone=backbone, backbone_args=args).train()
    model.loss(as_batch(torch.randn(4, 3, 32, 32), torch.arange(4))).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_batch_order_and_every_block_count() -> None:
    model = small(drop_path=0.1).eval()
    images, order = torch.randn(4, 3, 48, 48), torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        logits = model(images)
        torch.testing.assert_close(model(images[order]), logits[order], atol=1e-5, rtol=0)
        outputs = model.backbone.forward_intermediates(images, output_fmt="NLC", intermediates_only=True)
        assert [tuple(o.shape) for o in outputs] == [(4, 17, 32)] * 8
        expected = model.side(images, outputs, (4, 4))[-1]
        for index in range(8):
            for tokens in (slice(0, 1), slice(1, 17)):  # its meta token, its patches
                changed = [output.clone() for output in outputs]
                changed[index][:, tokens] = torch.randn_like(changed[index][:, tokens])
                assert not torch.allclose(model.side(images, changed, (4, 4))[-1], expected)


def test_drop_path_grows_with_the_blocks() -> None:
    model = small(drop_path=0.2)
    rates = [block.drop_path.drop_prob for stage in model.side.stages for block in stage.blocks]
    assert rates == pytest.approx(torch.linspace(0, 0.2, 8).tolist())


def test_frozen_backbone_keeps_no_graph() -> None:
    """Without meta tokens and norms nothing in the backbone trains, and features could be cached."""
    model = small(meta_tokens=0, tune_norm=False).train()
    images = torch.randn(4, 3, 48, 48)
    outputs = model.backbone.forward_intermediates(images, output_fmt="NLC", intermediates_only=True)
    assert not any(output.requires_grad for output in outputs)
    model.loss(as_batch(images, torch.arange(4))).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    assert not any(".meta_norms." in name for name, _ in model.named_parameters())


def test_buffers_are_saved() -> None:
    model = small()
    model.train()(torch.randn(4, 3, 48, 48))
    delta = model.delta_state_dict()
    for name in ("side.stages.0.shrink.layers.1", "head_norm"):
        assert not torch.equal(delta[f"{name}.running_mean"], torch.zeros_like(delta[f"{name}.running_mean"]))
        assert f"{name}.running_var" in delta
    other = small()
    other.load_state_dict(other.state_dict() | checkpoint_of(model)["state_dict"])
    images = torch.randn(2, 3, 48, 48)
    assert torch.equal(other.eval()(images), model.eval()(images))
    model.to(torch.bfloat16)
    assert all(tensor.dtype is torch.float32 for n, tensor in model.delta_state_dict().items() if "running" in n)


def test_head_init_is_followed() -> None:
    model = small(head_init="zero")
    assert model.backbone.head.in_features == 24
    assert not model(torch.randn(2, 3, 48, 48)).any()


def test_gradient_checkpointing_changes_nothing() -> None:
    gradients: list[dict[str, Tensor]] = []
    for checkpointing in (False, True):
        model = small().train()
        model.backbone.set_grad_checkpointing(checkpointing)
        torch.manual_seed(1)
        model.loss(as_batch(torch.randn(4, 3, 48, 48), torch.arange(4))).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=0)


@pytest.mark.parametrize("ends", [[2, 1, 5, 7], [1, 3, 5, 6], [1, 3, 7], [-2, 3, 5, 7]])
def test_refused_ends(ends: list[int]) -> None:
    with pytest.raises(ValueError, match=r"hst_ends=\[.*\]: expected four ascending block indices, the last one 7"):
        small(hst_ends=ends)


def test_default_ends_deal_out_all_blocks(build: Build) -> None:
    model: Any = build("hst")
    assert [model.ends(depth) for depth in (12, 24, 10, 4)] == [
        [2, 5, 8, 11],
        [5, 11, 17, 23],
        [1, 4, 7, 9],  # 10 is not a multiple of 4
        [0, 1, 2, 3],
    ]


def test_refusals(build: Build) -> None:
    with pytest.raises(ValueError, match=r"hst_dims=\[32, 48\]: expected four widths"):
        build("hst", hst_dims=[32, 48])
    with pytest.raises(ValueError, match=r"hst_heads=\[2, 4, 8, 7\]: expected four numbers that divide hst_dims"):
        build("hst", hst_heads=[2, 4, 8, 7])
    with pytest.raises(ValueError, match="meta_tokens=-1: expected a number of tokens, or 0"):
        build("hst", meta_tokens=-1)
    for backbone in ("swin_tiny_patch4_window7_224", "convnext_atto"):
        model = compose(HST, task=Classification)(backbone=backbone, pretrained=False)
        with pytest.raises(
            ValueError, match=r"HST reads the patches of a plain ViT, and .* is not known to have one sequence"
        ):
            model.configure_model()
    for backbone, args in (("deit_tiny_distilled_patch16_224", {}), ("vit_tiny_patch16_224", {"patch_drop_rate": 0.5})):
        model = compose(HST, task=Classification)(backbone=backbone, pretrained=False, backbone_args=args)
        with pytest.raises(ValueError, match="one classifier and all of its patches"):
            model.configure_model()
    with pytest.raises(ValueError, match=r"have parallel branches.* pass --model.tune_norm false"):
        small(backbone="vit_small_patch16_18x2_224")
    with pytest.raises(ValueError, match=r"batch_size=1: .* expected at least 2 images a device"):
        small().train()(torch.randn(1, 3, 48, 48))
