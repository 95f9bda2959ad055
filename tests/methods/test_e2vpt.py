"""E2VPT."""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from backbones.attention import ExtendedAttention
from callbacks.scoring.scorers import SignedGradients
from lightning_modules.classification import Classification
from methods import PEFTMethod, compose
from methods.e2vpt import E2VPT, SEGMENT, TOKEN, fewer, highest, spread
from tests.support.batches import as_batch
from tests.support.golden import Golden, head_parameters

Build = Callable[..., PEFTMethod]

COUNTS = {"vit_base_patch16_224": 138_240}
IDENTITY = {"prompt_length": 0, "kv_length": 0}
PERCENTAGES = range(10, 100, 10)


def check_e2vpt(golden: Golden) -> None:
    weights, tensors, method = golden.part("peft"), golden.tensors, golden.config["method"]
    images, labels = tensors["input"], tensors["label"].long()
    golden.tensors |= {"input": images[0], "label": labels[0]}
    length, segments = weights["segment_mask"].shape
    options = {
        "prompt_length": length,
        "kv_length": weights["blocks.0.kv_prompt"].shape[1],
        "prompt_segments": segments,
        "prune_score": "code",
    }
    model: Any = golden.build("e2vpt", prompt_train_masks=True, **options)
    model.fewest_segments = method["min_segments"]
    load(model, weights)
    golden.check_logits(model)
    deep = golden.tensors.pop("grad.deep_prompts")
    golden.tensors |= {f"grad.deep.{index}": gradient for index, gradient in enumerate(deep)}
    golden.check_gradients(model, parameters(model))

    model.zero_grad()
    scorer = model.build_scorer()
    assert isinstance(scorer, SignedGradients)
    with scorer:
        for batch in map(as_batch, images, labels):
            model.score_loss(batch).backward()
    # token scores are 5e-5 to 5e-4
    token, segment = (scorer.sums[name] / len(images) for name in (TOKEN, SEGMENT))
    torch.testing.assert_close(token, tensors["score.token"], atol=1e-6, rtol=0)
    torch.testing.assert_close(segment, tensors["score.segment"], atol=1e-6, rtol=0)
    # chain rule: every segment's factor is a part of its token's
    masks = model.backbone.prompt_masks
    torch.testing.assert_close((segment * masks.segment).sum(1), masks.token * token, atol=1e-6, rtol=0)

    least = method["min_segments"]
    for kind, size, stay, score in (
        ("token", length, 1, tensors["score.token"]),
        ("segment", segments, least, tensors["score.segment"]),
    ):
        levels = [fewer(size, percent, stay) for percent in PERCENTAGES]
        increments = torch.tensor(levels).diff(prepend=torch.zeros(1, dtype=torch.int64))
        expected = tensors[f"schedule.{kind}_increments"]
        assert increments[: len(expected)].tolist() == expected.tolist()
        assert not increments[len(expected) :].any()  # the list ends where its cap is reached
        counts = sorted(set(levels))
        assert counts == tensors[f"grid.{kind}_counts"].tolist()
        for lost, mask in zip(counts, tensors[f"mask.{kind}"], strict=True):
            assert torch.equal(torch.zeros_like(mask).scatter(-1, highest(score, lost), 1.0), mask), (kind, lost)

    lost, cut = tensors["pruned.point"].tolist()
    model.prune_tokens, model.prune_segments = math.ceil(100 * lost / length), math.ceil(100 * cut / segments)
    selection = model.select({TOKEN: tensors["score.token"], SEGMENT: tensors["score.segment"]})
    assert [length - len(selection["tokens"]), segments - selection["segments"].shape[1]] == [lost, cut]
    build = {"build": lambda self: setattr(self, "backbone", golden.plain_backbone())}
    fresh = type("Fresh", (E2VPT, Classification), build)(num_classes=model.num_classes, **options)
    pruned = pruned_like(model, selection, fresh)
    torch.testing.assert_close(pruned(images[0]), tensors["pruned.logits"], atol=1e-5, rtol=0)


def parameters(model: Any) -> dict[str, Tensor]:
    """Trained tensors by the names of the reference file."""
    blocks, masks = model.backbone.blocks, model.backbone.prompt_masks
    names = {f"deep.{i}": block.prompt.tokens for i, block in enumerate(blocks[1:])}
    names |= {f"blocks.{i}.kv_prompt": block.attn.kv_prompt for i, block in enumerate(blocks)}
    names |= {"token_mask": masks.token, "segment_mask": masks.segment, "input_prompt": blocks[0].prompt.tokens}
    return names | head_parameters(model)


def load(model: Any, weights: dict[str, Tensor]) -> None:
    values = weights | {f"deep.{i}": value for i, value in enumerate(weights["deep_prompts"])}
    for name, parameter in parameters(model).items():
        parameter.data.copy_(values[name].view_as(parameter))


def pruned_like(model: Any, selection: dict[str, Tensor], fresh: Any) -> Any:
    """``fresh``, built anew with the selected entries of a trained model."""
    fresh.build()
    fresh.backbone.load_state_dict({n: t for n, t in model.backbone.state_dict().items() if n in model.plain_keys})
    fresh.plain_keys, fresh.selection = None, selection
    fresh.configure_model()
    fresh.rewind(model.delta_state_dict())
    return fresh.eval()


GOLDEN = {"e2vpt": check_e2vpt}


def some_selection(model: Any, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (model.prompt_length, model.prompt_segments)
    return model.select(
        {TOKEN: torch.rand(shape[0], generator=generator), SEGMENT: torch.rand(shape, generator=generator)}
    )


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"prompt_length": 5}, 92_160),
        ({"kv_length": 10}, 184_320),
        ({"prompt_length": 32}, 340_992),
        ({"prompt_length": 1, "kv_length": 1}, 18_432),
        ({"kv_shared": False}, 138_240 + 46_080),
        ({"prompt_length": 0, "kv_length": 10, "kv_shared": False}, 184_320),  # prefix tuning
        ({"prompt_train_masks": True}, 138_240 + 10 * 17),
    ],
)
def test_counts(options: dict[str, Any], count: int) -> None:
    model: Any = compose(E2VPT, task=Classification)(backbone="vit_base_patch16_224", pretrained=False, **options)
    model.configure_model()
    assert model.parameter_counts()["method"] == count
    kv = model.backbone.blocks[0].attn.kv_prompt
    bound = (6 / (kv.shape[2] * 64)) ** 0.5
    assert 0.9 * bound < kv.abs().max() <= bound


def test_count_of_half_the_prompts_and_half_of_their_segments() -> None:
    model: Any = compose(E2VPT, task=Classification)(backbone="vit_base_patch16_224", pretrained=False)
    model.selection = some_selection(model)
    model.configure_model()
    assert model.parameter_counts()["method"] == 69_120


def test_without_key_value_prompts_it_is_vpt(build: Build) -> None:
    model, vpt = build("e2vpt", kv_length=0), build("vpt")
    vpt.configure_model()
    model.configure_model()
    model.load_state_dict(vpt.state_dict(), strict=False)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(images), vpt.eval()(images))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("backbone", [{}, {"qk_norm": True}, {"init_values": 0.7, "reg_tokens": 2}])
def test_key_value_prompts_by_hand(shared: bool, backbone: dict[str, Any]) -> None:
    torch.manual_seed(0)
    vit: Any = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=1, num_heads=3, **backbone)
    attn = vit.blocks[0].attn
    model = type("Tiny", (E2VPT, Classification), {"build": lambda self: setattr(self, "backbone", vit)})(
        num_classes=1000, prompt_length=0, kv_length=4, kv_shared=shared
    )
    model.configure_model()
    assert isinstance(attn, ExtendedAttention)
    x = torch.randn(2, 7, 48)
    q, k, v = attn.qkv(x).view(2, 7, 3, 3, 16).permute(2, 0, 3, 1, 4)
    q, k = attn.q_norm(q), attn.k_norm(k)
    keys, values = attn.kv_prompt[0].expand(2, -1, -1, -1), attn.kv_prompt[int(not shared)].expand(2, -1, -1, -1)
    scores = (q @ torch.cat([keys, k], dim=2).mT / 4).softmax(-1)  # in front here, behind there
    expected = attn.proj((scores @ torch.cat([values, v], dim=2)).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attn(x), expected, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="expected attention to all tokens"):
        attn(x, attn_mask=torch.zeros(7, 7))


@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize(
    "backbone",
    ["vit_small_patch16_dinov3", "eva02_base_patch14_448", "beit_base_patch16_224", "naflexvit_base_patch16_gap"],
)
def test_training_on_other_families(deep: bool, backbone: str) -> None:
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    model: Any = compose(E2VPT, task=Classification)(
        backbone=backbone, backbone_args=args, pretrained=False, num_classes=3, prompt_deep=deep
    )
    model.configure_model()
    assert [tuple(block.attn.kv_prompt.shape) for block in model.backbone.blocks] == [(1, 3, 5, 16)] * 2
    model.train().loss(as_batch(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize("layout", ["interleaved", "contiguous"])
def test_pruned_equals_masked(deep: bool, layout: str, build: Build) -> None:
    """Kept entries and one zero token with log t on its score compute what binary masks on all prompts compute."""
    options = {"prompt_deep": deep, "prompt_layout": layout, "prompt_length": 6, "prune_tokens": 67}
    model: Any = build("e2vpt", prompt_train_masks=True, **options)
    model.configure_model()
    selection = some_selection(model)
    assert len(selection["tokens"]) == 2
    masks = model.backbone.prompt_masks
    masks.token.data.zero_()[selection["tokens"]] = 1
    kept = torch.zeros(2, 16).scatter(1, selection["segments"], 1.0)
    masks.segment.data[selection["tokens"]] = kept
    pruned = pruned_like(model, selection, build("e2vpt", **options))
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(pruned(images), model.eval()(images), atol=1e-5, rtol=0)
    for other in (copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        assert torch.equal(other(images), pruned(images))
    removed = pruned_like(model, selection, build("e2vpt", prune_mode="remove", **options))
    assert removed.backbone.blocks[0].prompt.length == 2
    assert not torch.allclose(removed(images), pruned(images), atol=1e-3)


def test_what_is_pruned_stays_zero(build: Build, data: Any, trainer: Any) -> None:
    model: Any = build("e2vpt", weight_decay=0.5, lr=0.1)
    model.selection = some_selection(model)
    trainer(max_epochs=1).fit(model, datamodule=data())
    mask = torch.zeros(5, 16).scatter(1, model.selection["segments"], 1.0)
    for block in model.backbone.blocks:
        rows = block.prompt.rows()
        assert rows.shape == (6, 48)
        assert torch.equal(rows != 0, torch.cat([spread(mask, 48, "interleaved"), torch.zeros(1, 48)]) != 0)


@pytest.mark.parametrize("score", ["removal", "paper", "code"])
def test_scores_by_hand(score: str, build: Build) -> None:
    model: Any = build("e2vpt", prune_score=score, prompt_length=3)
    model.configure_model()
    model.eval()
    batches = [as_batch(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])) for _ in range(2)]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scorer = model.build_scorer()
    with scorer:
        for batch in batches:
            model.score_loss(batch).backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.backbone.prompt_masks.active
    assert all(p.grad is None for p in model.parameters())

    masks, expected = model.backbone.prompt_masks, {TOKEN: torch.zeros(3), SEGMENT: torch.zeros(3, 16)}
    for batch in batches:
        masks.requires_grad_(True)
        loss = model.loss(batch)
        gradients = torch.autograd.grad(loss, [masks.token, masks.segment])
        for name, gradient in zip(expected, gradients, strict=True):
            expected[name] += gradient if score == "code" else gradient.abs()
        masks.requires_grad_(False)
        if score == "removal":
            expected[TOKEN] -= gradients[0].abs()
            for index in range(3):
                other = copy.deepcopy(model)
                for block in other.backbone.blocks:
                    block.prompt.tokens.data[index] = 0
                expected[TOKEN][index] += (other.loss(batch) - loss).detach()
    for name, value in expected.items():
        torch.testing.assert_close(scorer.sums[name], value, atol=1e-6, rtol=0)


def test_gradients_of_token_factors_are_noise(build: Build) -> None:
    """A LayerNorm ignores how long its input is, but for its epsilon."""
    found = []
    for eps in (1e-6, 1e-7):
        model: Any = build("e2vpt", prune_score="code").double()
        model.configure_model()
        model.double().eval()
        for block in model.backbone.blocks:
            block.norm1.eps = eps
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(4, 3, 32, 32, generator=generator, dtype=torch.float64)
        with model.build_scorer() as scorer:
            F.cross_entropy(model(images), torch.tensor([0, 1, 2, 0])).backward()
        found.append(scorer.sums[TOKEN])
        assert found[-1].abs().max() < 1e-2 * scorer.sums[SEGMENT].abs().max()
    torch.testing.assert_close(found[0], 10 * found[1], rtol=1e-2, atol=0)


def test_levels() -> None:
    def levels(size: int, least: int) -> list[int]:
        return sorted({fewer(size, percent, least) for percent in PERCENTAGES})

    assert levels(5, 1) == [0, 1, 2, 3, 4]
    assert levels(10, 1) == list(range(1, 10))
    assert levels(32, 1) == [3, 6, 9, 12, 16, 19, 22, 25, 28]
    assert levels(1, 1) == levels(3, 4) == [0]
    assert levels(16, 4) == [1, 3, 4, 6, 8, 9, 11, 12]
    scores = torch.tensor([0.0, -1.0, 0.0, 0.0])
    assert [highest(scores, lost).tolist() for lost in range(4)] == [[0, 1, 2, 3], [0, 2, 3], [2, 3], [3]]


def test_prompts_have_no_order(build: Build) -> None:
    model: Any = build("e2vpt", prompt_train_masks=True)
    model.configure_model()
    masks, order = model.backbone.prompt_masks, torch.randperm(10)
    for parameter in (masks.token, masks.segment):
        torch.nn.init.uniform_(parameter)
    images = torch.randn(2, 3, 32, 32)
    before = model.eval()(images)
    for parameter in (masks.token, masks.segment, *(block.prompt.tokens for block in model.backbone.blocks)):
        parameter.data = parameter.data[order]
    torch.testing.assert_close(model(images), before, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_length": -1}, "kv_length=-1: expected a number"),
        ({"prompt_fourier": 0.5}, "use the method vpt"),
        ({"prompt_length": -1}, "prompt_length=-1: expected at least 0"),
        ({"prompt_segments": 0}, "prompt_segments=0: expected at least 1"),
        ({"prune_tokens": 100}, "prune_tokens=100: expected a percentage from 0 to 99"),
        ({"prune_segments": -5}, "prune_segments=-5: expected a percentage from 0 to 99"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str, build: Build) -> None:
    with pytest.raises(ValueError, match=message):
        build("e2vpt", **options)


def test_segments_that_do_not_divide_the_width(build: Build) -> None:
    with pytest.raises(ValueError, match="prompt_segments=7: expected a divisor of the prompts' width 48"):
        build("e2vpt", prompt_segments=7).configure_model()


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("swin_tiny_patch4_window7_224", r"E2VPT adds keys and values .* one sequence of tokens"),
        ("convnext_atto", r"E2VPT adds keys and values .* one sequence of tokens"),
        ("vit_small_patch16_18x2_224", "need blocks that norm their input and have one self-attention"),
        ("vit_base_patch16_rpn_224", "need blocks that norm their input and have one self-attention"),
    ],
)
def test_backbones_without_one_attention_are_refused_at_once(backbone: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose(E2VPT, task=Classification)(backbone=backbone, pretrained=False)


@pytest.mark.parametrize(
    ("tokens", "segments", "message"),
    [
        ([0, 10], [[0, 1], [0, 1]], "kept tokens .* from 0 to 9"),
        ([1, 0], [[0, 1], [0, 1]], "kept tokens .* ascending"),
        ([0, 1], [[0, 16], [0, 1]], "kept segments .* from 0 to 15"),
        ([0, 1], [[0, 1]], "expected .K,. and .K, S."),
        ([], [[]], "expected .K,. and .K, S."),
    ],
)
def test_bad_selections_are_refused(tokens: list[int], segments: list[list[int]], message: str, build: Build) -> None:
    model = build("e2vpt")
    model.selection = {"tokens": torch.tensor(tokens), "segments": torch.tensor(segments)}
    with pytest.raises(ValueError, match=message):
        model.configure_model()
