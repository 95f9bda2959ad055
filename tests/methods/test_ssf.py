"""SSF."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.convnext import ConvNeXt
from timm.models.deit import VisionTransformerDistilled
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock
from timm.models.resnet import BasicBlock, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from callbacks.measures import SavedBytes
from commands.methods.families import FAMILIES, build
from commands.methods.randomize import randomize
from datamodules import ImageDataset
from lightning_modules.batch import Batch
from lightning_modules.classification import Classification
from methods import METHODS, PEFTMethod, compose
from tests.conftest import quiet_trainer, random_tiny
from tests.support.golden import LOGITS, Golden, head_parameters
from tests.support.ranks import TwoRanks

VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}

COUNTS = {
    "vit_base_patch16_224": 205_824,
    "vit_small_patch16_224": 102_912,
    "swin_base_patch4_window7_224": 267_264,
    "convnext_base": 255_232,
}
IDENTITY: dict[str, Any] | None = {"ssf_init": "identity"}


def check_ssf(golden: Golden) -> None:
    model = golden.build("ssf")
    with torch.no_grad():
        torch.testing.assert_close(
            golden.plain_backbone()(golden.tensors["input"]), golden.tensors["frozen_logits"], atol=LOGITS, rtol=0
        )
    ours = {}
    for name, value in golden.part("peft").items():
        path, _, kind = name.rpartition(".")
        parameter = model.backbone.get_parameter(f"{path.replace('final', 'norm_pre')}.ssf.{kind}")
        parameter.data.copy_(value.view_as(parameter))
        ours[name] = parameter
    added = {n for n, _ in model.backbone.named_parameters() if ".ssf." in n}
    assert len(added) == len(ours), "the fixture has other pairs than the model"
    golden.check_logits(model)
    golden.check_gradients(model, ours | head_parameters(model))
    merged = golden.check_merge(model)
    assert ("norm_pre.ssf.scale" in merged.state_dict()) == ("final.scale" in golden.part("peft"))


GOLDEN = {"ssf": check_ssf, "ssf_swin": check_ssf, "ssf_convnext": check_ssf}

TINY_MODELS: dict[str, Callable[[], nn.Module]] = {
    "no_qkv_bias": lambda: VisionTransformer(**VIT, qkv_bias=False),
    "layer_scale": lambda: VisionTransformer(**VIT, init_values=0.1),
    "average_pool": lambda: VisionTransformer(**VIT, global_pool="avg"),
    "distilled": lambda: VisionTransformerDistilled(**VIT),
    "swin": lambda: SwinTransformer(
        img_size=32, patch_size=4, window_size=4, embed_dim=12, depths=(1, 1), num_heads=(2, 2), num_classes=3
    ),
    "convnext": lambda: ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 8, 16), num_classes=3),
    "mixer": lambda: MlpMixer(img_size=32, patch_size=8, embed_dim=16, num_blocks=2, num_classes=3),
    "resmlp": lambda: MlpMixer(
        img_size=32,
        patch_size=8,
        embed_dim=16,
        num_blocks=2,
        num_classes=3,
        block_layer=ResBlock,
        norm_layer=Affine,
        mlp_ratio=4,
    ),
    "resnet": lambda: ResNet(BasicBlock, (1, 1, 1, 1), channels=(8, 8, 8, 8), num_classes=3),
}


def adapted(name: str, **options: Any) -> PEFTMethod:
    """SSF on a tiny model of a class, with scales and shifts far from their initial values."""
    torch.manual_seed(0)
    backbone = TINY_MODELS[name]()

    class Task(Classification):
        def build(self) -> None:
            self.backbone = backbone

        def example_batch(self) -> Batch:
            return Batch.of(torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.long))

    model = type("Adapted", (METHODS["ssf"], Task), {})(num_classes=3, ssf_std=0.2, **options)
    model.configure_model()
    return model.eval()


@pytest.mark.parametrize("name", TINY_MODELS)
def test_merged_form_equals_the_elementwise_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and gradients of the custom backward against plain autograd of ``scale * f(x) + shift``."""
    images = torch.randn(2, 3, 32, 32)
    model = adapted(name)
    results = []
    for elementwise in (False, True):
        if elementwise:  # no scale is large enough to divide by
            monkeypatch.setattr("methods.layers.divisors.SMALLEST", float("inf"))
        model.zero_grad()
        logits = model(images)
        logits.square().sum().backward()
        results.append((logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}))
    torch.testing.assert_close(results[0][0], results[1][0], atol=2e-5, rtol=1e-5)
    for parameter, gradient in results[0][1].items():
        torch.testing.assert_close(gradient, results[1][1][parameter], atol=2e-4, rtol=2e-4, msg=parameter)


@pytest.mark.parametrize("name", TINY_MODELS)
def test_merge_everywhere(name: str) -> None:
    model = adapted(name)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
        merged = model.merge()
        torch.testing.assert_close(merged(images), expected, atol=1e-5, rtol=1e-5)
    assert model.plain_keys is not None
    extra = {key.rpartition(".")[0] for key in set(merged.state_dict()) - model.plain_keys}
    # a bias that the plain model lacks, or the final map that no weight can take
    kept = {"convnext": {"norm_pre.ssf"}, "average_pool": {"norm.ssf"}}
    kept["no_qkv_bias"] = {"blocks.0.attn.qkv", "blocks.1.attn.qkv"}
    assert extra == kept.get(name, set())


def test_downsampling_layers_are_an_option() -> None:
    for backbone, count in {"swin_base_patch4_window7_224": 274_432, "convnext_base": 260_608}.items():
        model = compose(METHODS["ssf"], task=Classification)(
            backbone=backbone, pretrained=False, num_classes=100, ssf_downsample=True
        )
        model.configure_model()
        assert model.parameter_counts()["method"] == count


def test_bf16_keeps_activations_in_bf16() -> None:
    """An fp32 scale must not promote what autograd keeps: saved bytes stay near those of the frozen model."""
    model = adapted("layer_scale").train()
    images = torch.randn(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16), SavedBytes(model) as low:
        model(images).sum()
    with SavedBytes(model) as full:
        model(images).sum()
    assert low.bytes < 0.75 * full.bytes


def test_only_the_head_decays() -> None:
    model = adapted("layer_scale", weight_decay=0.1)
    decayed = {id(p) for group in model.param_groups() if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(model.backbone.head.weight)}


def test_negative_std_is_refused() -> None:
    with pytest.raises(ValueError, match="ssf_std=-1"):
        random_tiny("ssf", ssf_std=-1)


FAMILY_EXTRA: dict[str, str | None] = {  # a tensor that the plain model lacks after the merge
    "beit": None,
    "byobnet": None,
    "convmixer": None,
    "efficientnet": None,
    "efficientvit_msra": None,
    "eva/dinov3": "blocks.0.attn.qkv.bias",
    "inception_next": None,
    "levit": None,
    "maxxvit/coatnet": "stem.conv2.bias",
    "metaformer": None,
    "naflexvit": None,
    "nfnet": None,
    "regnet": None,
    "resnet": None,
    "resnetv2/bit": "stem.conv.ssf.scale",
    "swin_transformer_v2": "layers.0.blocks.0.attn.qkv.bias",
    "tiny_vit": None,
    "vision_transformer/clip": None,
    "volo": "network.0.0.attn.v.bias",
    "xcit": None,
}


@pytest.mark.parametrize("name", FAMILY_EXTRA)
def test_families(name: str) -> None:
    """Every trained parameter has a gradient. A merged model has equal outputs; its keys are plain, or one is extra."""
    family = FAMILIES[name]
    torch.manual_seed(0)
    backbone = randomize(build(name), family.size)

    class Task(Classification):
        def build(self) -> None:
            self.backbone = backbone

        def example_batch(self) -> Batch:
            return Batch.of(torch.zeros(1, 3, family.size, family.size), torch.zeros(1, dtype=torch.long))

    model = type("Adapted", (METHODS["ssf"], Task), {})(num_classes=3, ssf_std=0.2)
    model.configure_model()
    images = torch.randn(2, 3, family.size, family.size)
    model.train()(images).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    with torch.no_grad():
        expected = model.eval()(images)
        merged = model.merge()
        torch.testing.assert_close(merged(images), expected, atol=1e-4 * float(expected.abs().max()), rtol=0)
    extra = set(merged.state_dict()) - set(model.plain_keys or ())
    assert (FAMILY_EXTRA[name] in extra) if FAMILY_EXTRA[name] else not extra
    unlike = [type(m).__name__ for m in merged.modules() if type(m).__name__.startswith("SSF")]
    assert not unlike


def test_the_fast_form_of_safe_layers() -> None:
    """All linear layers and convolutions of a ViT train in it, otherwise a step is slower and keeps more tensors."""
    kinds = {n: type(m) for n, m in adapted("layer_scale").backbone.named_modules()}
    slow = [n for n, kind in kinds.items() if kind in (nn.Linear, nn.Conv2d) and n != "head"]
    assert not slow


def fit_beit_on_two_ranks(rank: int, images: Path, folder: Path) -> dict[str, Tensor]:
    args = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}
    model = compose(METHODS["ssf"], task=Classification)(
        backbone="beit_base_patch16_224", backbone_args=args, pretrained=False, num_classes=3, lr=1e-2
    )
    run = quiet_trainer(folder, devices=2, strategy="ddp")
    run.fit(model, datamodule=ImageDataset(root=str(images), batch_size=4, resize="direct"))
    return model.delta_state_dict()


def test_beit_has_no_unused_pairs_on_two_ranks(two_ranks: TwoRanks, images: Path, tmp_path: Path) -> None:
    """Plain DDP ends with an error if a pair has no gradient, as those of a layer whose weight is read bare."""
    first, second = two_ranks(fit_beit_on_two_ranks, images, tmp_path)
    assert any("qkv.ssf" in name for name in first)
    assert all(torch.equal(first[name], second[name]) for name in first)
