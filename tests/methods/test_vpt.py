"""VPT."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_modules.classification import Classification
from methods import PEFTMethod, compose
from methods.vpt import VPT
from tests.conftest import TINY
from tests.support.batches import as_batch
from tests.support.golden import Golden, head_parameters

Build = Callable[..., PEFTMethod]

QK_NORM = TINY | {"qk_norm": True}

COUNTS = {"vit_base_patch16_224": 92_160}
IDENTITY: dict[str, Any] | None = None  # prompts change the logits from the first step


def check_vpt(golden: Golden) -> None:
    weights = golden.part("peft")
    first, deep = weights["prompt_embeddings"], weights.get("deep_prompt_embeddings")
    projected = "prompt_proj.weight" in weights
    model = golden.build(
        "vpt",
        prompt_length=first.shape[1],
        prompt_deep=deep is not None,
        prompt_project=first.shape[2] if projected else 0,
        prompt_fourier=golden.config["method"].get("share", 0.0),
    )
    prompts = [block.prompt for block in model.backbone.blocks if hasattr(block, "prompt")]
    values = [first[0], *(deep if deep is not None else [])]
    for prompt, value in zip(prompts, values, strict=True):
        prompt.tokens.data.copy_(value)
    ours = head_parameters(model)
    if projected:
        for name, parameter in model.backbone.prompt_project.named_parameters():
            parameter.data.copy_(weights[f"prompt_proj.{name}"])
            ours[f"prompt_proj.{name}"] = parameter
    golden.check_logits(model)
    # the file holds the prompts of all deeper blocks in one tensor
    grad = golden.tensors.pop("grad.deep_prompt_embeddings", None)
    for index, gradient in enumerate(grad if grad is not None else []):
        golden.tensors[f"grad.deep.{index}"] = gradient
        ours[f"deep.{index}"] = prompts[index + 1].tokens
    golden.check_gradients(model, ours | {"prompt_embeddings": prompts[0].tokens})


GOLDEN = dict.fromkeys(["vpt_shallow", "vpt_deep", "vpt_deep_project", "vpt_fourier"], check_vpt)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"prompt_length": 50, "prompt_deep": False}, 38_400),
        ({"prompt_length": 50}, 460_800),
        ({"prompt_project": 64}, 12 * 10 * 64 + 64 * 768 + 768),
    ],
)
def test_counts(options: dict[str, Any], count: int) -> None:
    model = compose(VPT, task=Classification)(backbone="vit_base_patch16_224", pretrained=False, **options)
    model.configure_model()
    assert model.parameter_counts()["method"] == count
    first = model.backbone.blocks[0].prompt.tokens
    bound = (6 / (3 * 16 * 16 + first.shape[1])) ** 0.5
    assert 0.9 * bound < first.abs().max() <= bound


@pytest.mark.parametrize("deep", [True, False])
def test_sequence_comes_back_without_prompts(deep: bool, build: Build) -> None:
    model = build("vpt", prompt_deep=deep, prompt_length=4)
    model.configure_model()
    assert model.backbone.forward_features(torch.randn(2, 3, 32, 32)).shape == (2, 17, 48)
    lengths = [p.shape[0] for n, p in model.named_parameters() if n.endswith("prompt.tokens")]
    assert lengths == ([4, 4] if deep else [4])


def test_a_number_for_each_block(build: Build) -> None:
    model = build("vpt", prompt_lengths=[0, 3])
    model.configure_model()
    assert {n: tuple(p.shape) for n, p in model.named_parameters() if "prompt" in n} == {
        "backbone.blocks.1.prompt.tokens": (3, 48)
    }
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        ({"prompt_length": 40}, (6 / (3 * 8 * 8 + 48)) ** 0.5),  # VPT: Xavier of the patch embedding
        ({"prompt_length": 40, "prompt_init": "xavier"}, (6 / (48 * 41)) ** 0.5),  # NOAH: Xavier of (1, P, C)
        ({"prompt_lengths": [5, 60], "prompt_init": "xavier"}, (6 / (48 * 61)) ** 0.5),
    ],
)
def test_initial_prompts(options: dict[str, Any], bound: float, build: Build) -> None:
    model = build("vpt", **options)
    model.configure_model()
    tokens = model.backbone.blocks[1].prompt.tokens.detach()
    assert 0.98 * bound < float(tokens.abs().max()) <= bound
    if "prompt_lengths" not in options and "prompt_init" in options:
        plain = torch.nn.init.xavier_uniform_(torch.empty(1, *tokens.shape))
        assert float(tokens.std()) == pytest.approx(float(plain.std()), rel=0.05)


def test_dense_features_of_deep_prompts(build: Build) -> None:
    model = build("vpt", prompt_length=4)
    model.configure_model()
    _, maps = model.eval().backbone.forward_intermediates(torch.randn(2, 3, 32, 32))
    assert [tuple(m.shape) for m in maps] == [(2, 48, 4, 4)] * 2


@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize(
    "backbone",
    [
        "vit_tiny_patch16_224",
        "vit_small_patch14_reg4_dinov2",  # registers and layer scale
        "vit_base_patch16_siglip_224",  # no class token, attention pooling
        "vit_base_patch16_clip_quickgelu_224",  # norm before the blocks
        "vit_base_patch16_rpn_224",  # norms behind the branches
        "vit_small_patch16_18x2_224",  # two branches side by side
        "vit_small_patch16_dinov3",  # rotary positions
        "eva02_tiny_patch14_224",
        "eva02_enormous_patch14_clip_224",
    ],
)
def test_against_prompts_behind_the_class_token(deep: bool, backbone: str) -> None:
    """The published form: prompts follow the prefix tokens, each block's outputs at their places are discarded."""
    args = {"img_size": 28, "patch_size": 7, "embed_dim": 48, "depth": 3, "num_heads": 3}
    torch.manual_seed(0)
    model = compose(VPT, task=Classification)(
        backbone=backbone, backbone_args=args, pretrained=False, num_classes=3, prompt_length=4, prompt_deep=deep
    )
    for name, parameter in model.backbone.named_parameters():
        if "ls" in name or "gamma" in name:
            parameter.data.fill_(0.7)  # a layer scale of 1e-5 would hide the blocks
    images = torch.randn(3, 3, 28, 28)
    vit = model.backbone
    model.configure_model()
    prompts = [block.prompt.tokens for block in vit.blocks if hasattr(block, "prompt")]
    model.eval()
    with torch.no_grad():
        logits, alone = model(images), torch.cat([model(image[None]) for image in images])
        model.build()
        missing = model.backbone.load_state_dict(vit.state_dict(), strict=False).missing_keys
        assert not missing
        vit, n = model.backbone.eval(), model.backbone.num_prefix_tokens
        embedded = vit._pos_embed(vit.patch_embed(images))
        expected, rope = embedded if isinstance(embedded, tuple) else (embedded, None)
        expected, options = vit.norm_pre(expected), {} if rope is None else {"rope": rope}
        for index, block in enumerate(vit.blocks):
            if rope is not None:
                block.attn.num_prefix_tokens += 4  # prompts are not rotated
            if index < len(prompts):
                behind = expected[:, n + (4 if index else 0) :]
                expected = torch.cat([expected[:, :n], prompts[index].expand(3, -1, -1), behind], dim=1)
            expected = block(expected, **options)
        expected = torch.cat([expected[:, :n], expected[:, n + 4 :]], dim=1)  # average pooling leaves the prompts out
        torch.testing.assert_close(logits, vit.forward_head(vit.norm(expected)), atol=1e-5, rtol=0)
    torch.testing.assert_close(alone, logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize(
    ("backbone", "args"),
    [
        ("vit_small_patch16_dinov3", {"dynamic_img_size": True}),
        ("vit_small_patch16_dinov3", {"patch_drop_rate": 0.5}),
        ("beit_base_patch16_224", {}),
        ("vit_relpos_small_patch16_224", {}),
        ("naflexvit_base_patch16_gap", {}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("vit_tiny_r_s16_p8_224", {"patch_size": 1}),
    ],
)
def test_training_on_other_families(deep: bool, backbone: str, args: dict[str, Any]) -> None:
    """Prompts train, nothing frozen gets a gradient, and the features are those of a sequence without prompts."""
    tiny = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    torch.manual_seed(0)
    model = compose(VPT, task=Classification)(
        backbone=backbone, backbone_args=tiny | args, pretrained=False, num_classes=3, prompt_deep=deep
    )
    for name, parameter in model.backbone.named_parameters():
        if "ls" in name or "gamma" in name:
            parameter.data.fill_(0.7)  # a layer scale of 1e-5 would hide the blocks
    images = torch.randn(3, 3, 32, 48 if "dynamic_img_size" in args else 32)
    with torch.no_grad():
        plain = model.eval().features(images)
        model.configure_model()
        features, alone = model.eval().features(images), torch.cat([model.features(image[None]) for image in images])
    assert features.shape == plain.shape
    assert not torch.allclose(features, plain, atol=1e-5)
    torch.testing.assert_close(alone, features, atol=1e-4, rtol=1e-4)
    model.train().loss(as_batch(images, torch.tensor([0, 1, 2]))).backward()
    assert all((p.grad is not None and bool(p.grad.any())) == p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_prompts_are_projected_once_and_ask_nothing(dropout: float, build: Build) -> None:
    model = build("vpt", prompt_length=4, prompt_dropout=dropout, pretrained=False, backbone_args=QK_NORM)
    model.configure_model()
    model.train()
    attn = model.backbone.blocks[0].attn
    for norm in (attn.q_norm, attn.k_norm):
        norm.weight.data.uniform_(0.5, 2.0)
    projected: list[Tensor] = []
    attn.qkv.register_forward_hook(lambda module, args, out: projected.append(out))
    x = torch.randn(3, 17, 48)
    out = attn(x)
    copies = 3 if dropout else 1  # every image drops its own elements
    assert [tuple(t.shape) for t in projected] == [(3, 17, 144), (copies, 4, 144)]
    prompts = projected[1].expand(3, -1, -1)
    q, k, v = torch.cat([projected[0], prompts], dim=1).unflatten(2, (3, 3, 16)).permute(2, 0, 3, 1, 4)
    scores = attn.q_norm(q[:, :, :17]) @ attn.k_norm(k).transpose(2, 3) / 4
    expected = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(out, attn.proj(expected))


def test_dropout_differs_between_images(build: Build) -> None:
    model = build("vpt", prompt_dropout=0.5, prompt_project=5)
    model.configure_model()
    block = model.train().backbone.blocks[0]
    x = torch.zeros(2, 17, 48)
    first, second = block.prompt.pre_hook(block, (x,))[0][:, :-17]
    assert not torch.equal(first, second)
    model.eval()
    first, second = block.prompt.pre_hook(block, (x,))[0][:, :-17]
    assert torch.equal(first, second)


def test_copy_shares_its_own_projection(build: Build) -> None:
    model = build("vpt", prompt_project=5)
    model.configure_model()
    copied = copy.deepcopy(model).backbone
    assert copied.prompt_project is not model.backbone.prompt_project
    for block in copied.blocks:
        assert block.prompt.shared[0] is copied.prompt_project
        assert block.prompt.shared[1] is block.norm1
    keys = [name for name in model.delta_state_dict() if "project" in name]
    assert keys == ["backbone.prompt_project.weight", "backbone.prompt_project.bias"]


def swin(**options: Any) -> PEFTMethod:
    """Two stages of 8 x 8 (four windows, one block shifted) and 4 x 4 patches."""
    torch.manual_seed(0)
    args = {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}
    model = compose(VPT, task=Classification)(
        backbone="swin_tiny_patch4_window7_224", backbone_args=args, pretrained=False, num_classes=3, **options
    )
    for name, parameter in model.backbone.named_parameters():
        if "relative_position_bias_table" in name or "norm" in name:
            parameter.data.add_(torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("deep", [True, False])
def test_swin_trains_and_copies(deep: bool) -> None:
    model = swin(prompt_deep=deep, prompt_length=3, drop_path=0.1)
    model.configure_model()
    prompts = {n: p.shape for n, p in model.backbone.named_parameters() if n.endswith("prompt.tokens")}
    assert [tuple(shape) for shape in prompts.values()] == ([(3, 24)] * 2 + [(3, 48)] * 2 if deep else [(3, 24)])
    images = torch.randn(2, 3, 32, 32)
    model.train().loss(as_batch(images, torch.tensor([0, 1]))).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    model.eval()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(images), model(images))


def test_refusals(build: Build) -> None:
    model = build("vpt")
    model.configure_model()
    with pytest.raises(ValueError, match="prompts and an attention mask together"):
        model.backbone.blocks[0].attn(torch.zeros(1, 17, 48), is_causal=True)
    for length in (0, -3):
        with pytest.raises(ValueError, match=f"prompt_length={length}: expected at least 1 prompt"):
            build("vpt", prompt_length=length)
    with pytest.raises(ValueError, match="prompt_project=-1: expected a width, or 0"):
        build("vpt", prompt_project=-1)
    with pytest.raises(ValueError, match=r"prompt_dropout=1.0: expected a probability"):
        build("vpt", prompt_dropout=1.0)
    for backbone in ("swinv2_tiny_window8_256", "convnext_atto", "resnet18"):
        with pytest.raises(
            ValueError, match=r"tokens of a ViT or the windows of a Swin, and .* is not known to have one sequence"
        ):
            compose(VPT, task=Classification)(backbone=backbone, pretrained=False)
    with pytest.raises(ValueError, match="prompt_lengths is for new prompts at every block"):
        build("vpt", prompt_lengths=[1, 1], prompt_deep=False)
    with pytest.raises(ValueError, match=r"prompt_lengths=\[1\]: expected a size for each of the 2 blocks"):
        build("vpt", prompt_lengths=[1]).configure_model()
    with pytest.raises(ValueError, match="a Swin passes its prompts on"):
        swin(prompt_lengths=[1, 1, 1, 1]).configure_model()
    with pytest.raises(ValueError, match="all blocks share the masks of E2VPT's prompts"):
        build("e2vpt", prompt_lengths=[1, 1])
    with pytest.raises(ValueError, match="the stages of a Swin differ in width, expected 0"):
        swin(prompt_project=5).configure_model()


def test_fourier_prompts_in_bf16(build: Build) -> None:
    model = build("vpt", prompt_length=4, prompt_fourier=0.5)
    model.configure_model()
    prompt: Any = model.backbone.blocks[0].prompt  # type: ignore[index, union-attr]
    found = prompt.eval()(torch.zeros(1, 17, 48, dtype=torch.bfloat16))
    assert found.dtype is torch.bfloat16
    expected = prompt.shared[1](torch.cat([torch.fft.fft2(prompt.tokens[:2]).real, prompt.tokens[2:]]))
    torch.testing.assert_close(found[0].float(), expected, atol=0.05, rtol=0.05)


def test_prompts_start_as_tokens_of_training_images(
    build: Build, data: Callable[..., Any], trainer: Callable[..., Any]
) -> None:
    model = build("vpt", prompt_length=4, prompt_init="tokens", optimizer="sgd", lr=1e-9)
    plain: Any = copy.deepcopy(model.backbone).eval()
    images = data(batch_size=24)
    trainer(max_steps=1).fit(model, datamodule=images)
    maps: list[Tensor] = []
    for block in plain.blocks:
        block.register_forward_pre_hook(lambda module, args: maps.append(args[0][:, 1:].flatten(0, 1)))
    with torch.no_grad():
        for batch in images.score_batches(24):
            plain(images.on_after_batch_transfer(batch, 0).inputs)
    drawn: list[Tensor] = []
    for block, tokens in zip(model.backbone.blocks, maps, strict=True):  # type: ignore[union-attr, arg-type]
        assert block.attn.prompts == (block.prompt,)
        assert torch.cdist(block.prompt.tokens.detach(), tokens).min(dim=1).values.max() < 1e-3
        drawn.append(block.prompt.tokens.detach())
    again = build("vpt", prompt_length=4, prompt_init="tokens", optimizer="sgd", lr=1e-9)
    trainer(max_steps=1).fit(again, datamodule=data(batch_size=24))
    assert torch.equal(again.backbone.blocks[1].prompt.tokens, drawn[1])  # type: ignore[index, union-attr]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_fourier": 1.5}, "expected a share of the prompts"),
        ({"prompt_fourier": 0.05}, "this share of 10 prompts is none"),
        ({"prompt_init": "tokens", "prompt_deep": False}, "leave prompt_project and prompt_deep=False out"),
    ],
)
def test_wrong_options_of_prompts(options: dict[str, Any], message: str, build: Build) -> None:
    with pytest.raises(ValueError, match=message):
        build("vpt", **options).configure_model()
