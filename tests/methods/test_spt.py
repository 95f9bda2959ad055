"""SPT."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.classification import Classification
from methods import METHODS, PEFTMethod
from methods.layers.sparse import Entries
from methods.layers.spt_budget import Part, sweep
from methods.layers.spt_modules import Bottleneck
from tests.conftest import perturb, random_tiny
from tests.support.batches import as_batch
from tests.support.golden import Golden, head_parameters, score_in_a_fit

COUNTS: dict[str, int] = {}  # they depend on the scores
IDENTITY: dict[str, Any] | None = {}

SCORES = {"rtol": 1e-4, "atol": 1e-9}  # the gradient of k.bias is rounding alone
OPS = ("q", "k", "v", "proj", "fc1", "fc2")
FIRST = ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")
LAST = ("head.weight", "head.bias")


def task(backbone: nn.Module, unit: float = 1e6, **options: Any) -> PEFTMethod:
    """SPT on a backbone, not adapted yet."""

    class Task(Classification):
        def build(self) -> None:
            self.backbone = backbone

    cls = type("Task", (METHODS["spt"], Task), {"budget_unit": unit})
    return cls(num_classes=backbone.num_classes, **options).eval()


def scores(model: Any, seed: int = 5) -> dict[str, Tensor]:
    """Made up ones of many magnitudes; some tensors matter more than others."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.normal(
            2 * float(torch.randn((), generator=generator)),
            2.0,
            model.backbone.get_parameter(name).shape,
            generator=generator,
        ).exp()
        for name in model.score_targets()
    }


def adapted(backbone: nn.Module, scores: dict[str, Tensor], unit: float = 1e6, **options: Any) -> PEFTMethod:
    model = task(backbone, unit, **options)
    model.selection = model.select(scores)
    model.configure_model()
    return model.eval()


# the original's results


def fused(scores: dict[str, Tensor], targets: list[str]) -> dict[str, Tensor]:
    """Scores of the real parameters from those of q, k and v apart."""
    whole = {}
    for name in targets:
        parts = [scores.get(name.replace("qkv", block)) for block in "qkv"] if "qkv" in name else [scores[name]]
        whole[name] = torch.cat([part for part in parts if part is not None])
    return whole


class Values:
    """Some of a parameter's values; its gradient is theirs."""

    def __init__(self, parameter: Tensor, index: Any = ...) -> None:
        self.parameter, self.index = parameter, index

    def set(self, value: Tensor) -> None:
        self.parameter.data[self.index] = value

    def add(self, value: Tensor) -> None:
        self.parameter.data[self.index] += value

    @property
    def grad(self) -> Tensor | None:
        return None if self.parameter.grad is None else self.parameter.grad[self.index]


def located(model: PEFTMethod, name: str) -> Values:
    """Our values for a parameter of the original, which keeps q, k and v apart and names modules by their layer."""
    path, _, kind = name.rpartition(".")
    structured, _, learnable = path.partition(".learnable.")
    if learnable:
        layer = structured.replace("structured_", "")
    else:
        layer, kind = path, kind.removeprefix("sparse_")
    above, _, block = layer.rpartition(".")
    third = "qkv".index(block) if block in ("q", "k", "v") else None
    module = model.backbone.get_submodule(layer if third is None else f"{above}.qkv")
    if learnable and model.spt_kind == "adapter":
        bottleneck = module.spt.blocks[block]
        return Values(getattr(bottleneck.down if learnable == "0" else bottleneck.up, kind))
    if learnable:
        lora = module.spt
        factor, count = lora.A if learnable == "0" else lora.B, len(lora.rows)
        size = module.out_features // 3
        place = 0 if third is None else lora.rows.index((third * size, (third + 1) * size))
        return Values(factor, slice(place * len(factor) // count, (place + 1) * len(factor) // count))
    tensor = getattr(module, kind)
    entries = module._modules.get(f"{kind}_entries")
    if entries is None:
        return Values(tensor)
    size = tensor.numel() if third is None else tensor.numel() // 3
    start = (third or 0) * size
    return Values(entries.values, (entries.indices >= start) & (entries.indices < start + size))


def check_scores(golden: Golden) -> None:
    """Sums of squared gradients of the batches' mean losses, as a fit makes them, and what it chooses with them."""
    settings, stored = golden.config["method"], golden.part("score")
    options = {"spt_rank": settings["rank"], "spt_alpha": settings["alpha"], "spt_beta": settings["beta"]}
    model = task(golden.plain_backbone(), settings["unit"], **options)
    expected = fused(stored, model.score_targets())
    choice = model.select(expected)
    size = int(stored["batch_size"])
    batches = list(map(as_batch, stored["input"].split(size), stored["label"].long().split(size)))
    for name, score in score_in_a_fit(model, batches).items():
        torch.testing.assert_close(score, expected[name], **SCORES)
    assert model.selection is not None
    assert model.selection.keys() == choice.keys()
    assert all(torch.equal(model.selection[name], chosen) for name, chosen in choice.items())


def check_selection(golden: Golden, kind: str) -> None:
    settings, stored = golden.config["method"], golden.part("score")
    model = task(golden.plain_backbone(), spt_kind=kind, spt_rank=settings["rank"])
    parts = model.pool()
    found = sweep(
        parts,
        [stored[part.name].flatten() for part in parts],
        settings["alpha"],
        settings["beta"],
        model.class_token,
        settings["unit"],
    )
    prefix = f"{kind}.budget_"
    names = [name.removeprefix(prefix) for name in golden.tensors if name.startswith(prefix)]
    budgets = [name.removesuffix(".params") for name in names if name.endswith(".params")]
    assert budgets
    for budget in budgets:
        expected, step = golden.part(f"{prefix}{budget}"), found.step_for_budget(float(budget))
        assert found.params(step) == int(expected["params"])
        assert int(found.unstructured[step]) == int(expected["unstructured_params"])
        assert int(found.structured[step]) == int(expected["structured_params"])
        dense = {part.name for part in found.dense_parts(step)}
        names = [*FIRST, *(part.name for part in parts), *LAST]
        vectors = {part.name for part in parts if part.vector}
        assert [name in dense & vectors for name in names] == expected["tuned_vectors"].tolist()
        depth = len(model.backbone.blocks)
        table = [
            [f"blocks.{i}.{'mlp' if op[0] == 'f' else 'attn'}.{op}.weight" in dense for op in OPS] for i in range(depth)
        ]
        assert table == expected["tuned_matrices"].bool().tolist()
        entries = {f"index.{part.name}": index for part, index in found.entries(step).items()}
        lists = {name: index for name, index in expected.items() if name.startswith("index.")}
        assert entries.keys() == lists.keys()
        assert all(torch.equal(entries[name], index.long()) for name, index in lists.items())


def check_training(golden: Golden, kind: str) -> None:
    settings = golden.config["method"]
    part = copy.copy(golden)
    part.tensors = golden.part(f"{kind}.train") | {n: golden.tensors[n] for n in ("input", "label")}
    model = task(golden.plain_backbone())
    model = adapted(
        golden.plain_backbone(),
        fused(golden.part("score"), model.score_targets()),
        settings["unit"],
        spt_kind=kind,
        spt_rank=settings["rank"],
        spt_alpha=settings["alpha"],
        spt_beta=settings["beta"],
        spt_budget=round(float(part.tensors["budget"]), 6),
        spt_train_norm_sparse=False,
    )
    assert model.parameter_counts()["method"] == int(part.tensors["count"])
    for name, value in part.part("peft").items():
        values = located(model, name)
        (values.add if "sparse" in name else values.set)(value)
    head = head_parameters(model)
    ours: dict[str, Any] = {n: located(model, n) for n in part.part("grad") if n not in head and n != "cls_token"}
    ours |= head | {"cls_token": model.backbone.cls_token}
    part.check_logits(model)
    part.check_gradients(model, ours)
    if kind == "lora":
        merged = part.check_merge(model)
        assert set(merged.state_dict()) == model.plain_keys
    else:
        with pytest.raises(TypeError, match="cannot be merged because"):
            model.merge()


def check(golden: Golden) -> None:
    check_scores(golden)
    for kind in ("lora", "adapter"):
        check_selection(golden, kind)
        check_training(golden, kind)


GOLDEN = {"spt": check}


# the model

VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 3}
BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: VisionTransformer(**VIT),
    "no_qkv_bias": lambda: VisionTransformer(**VIT, qkv_bias=False),
    "layer_scale": lambda: VisionTransformer(**VIT, init_values=0.1),
    "average_pool": lambda: VisionTransformer(**VIT, global_pool="avg", class_token=False),
    "swin": lambda: SwinTransformer(
        img_size=32, patch_size=4, window_size=4, embed_dim=12, depths=(1, 1), num_heads=(2, 2), num_classes=3
    ),
    "swin_v2": lambda: SwinTransformerV2(
        img_size=32, patch_size=4, window_size=4, embed_dim=12, depths=(1, 1), num_heads=(2, 2), num_classes=3
    ),
    "convnext": lambda: ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 8, 16), num_classes=3),
}
SMALL: dict[str, Any] = {"unit": 5e3, "spt_rank": 2}


def plain(name: str) -> nn.Module:
    torch.manual_seed(0)
    return BACKBONES[name]().eval()


@pytest.mark.parametrize("kind", ["lora", "adapter"])
@pytest.mark.parametrize("granularity", ["both", "structured_only", "unstructured_only"])
@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone(name: str, granularity: str, kind: str) -> None:
    """Starts from the frozen backbone, trains what was counted, and merges where it can."""
    options = {"spt_kind": kind, "spt_granularity": granularity, **SMALL}
    images = torch.randn(2, 3, 32, 32)
    made_up = scores(task(plain(name), **options))
    model = adapted(plain(name), made_up, **options)
    assert torch.equal(model(images), plain(name)(images))
    assert model.selection is not None
    kinds = {key.partition("/")[0] for key in model.selection}
    assert ("structured" in kinds) == (granularity != "unstructured_only")
    assert ("entries" in kinds) or granularity == "structured_only"
    flat = [made_up[p.parameter].flatten()[p.start : p.start + p.size] for p in model_pool(name, **options)]
    found = sweep(model_pool(name, **options), flat, 10, 5, model.class_token, SMALL["unit"], granularity)  # type: ignore[arg-type]
    assert model.parameter_counts()["method"] == found.params(found.step_for_budget(0.4))
    perturb(model, 0.1)
    model.train()
    model.loss(as_batch(images, torch.tensor([0, 1]))).backward()
    for parameter_name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, parameter_name
    if kind == "lora":
        expected = model.eval()(images)
        merged = model.merge()
        torch.testing.assert_close(merged(images), expected, atol=1e-5, rtol=1e-5)
        assert [type(a) for a in merged.modules()] == [type(b) for b in plain(name).modules()]


def model_pool(name: str, unit: float, **options: Any) -> list[Part]:
    return task(plain(name), unit, **options).pool()


def test_the_pool_of_vit_b() -> None:
    """Its size, its order, and the modules' sizes of the paper's table."""
    with torch.device("meta"):
        backbone = timm.create_model("vit_base_patch16_224", num_classes=10)
    for kind, sizes in {
        "lora": {"q": 12_288, "proj": 12_288, "fc1": 30_720, "fc2": 30_720},
        "adapter": {"q": 13_064, "proj": 13_064, "fc1": 52_232, "fc2": 13_064},
    }.items():
        parts = task(backbone, spt_kind=kind).pool()
        assert sum(part.size for part in parts) == 85_056_000
        modules = {part.name.split(".")[-2]: part.module for part in parts if part.module}
        assert {op: modules[op] for op in sizes} == sizes
    block = ["norm1", "attn.q", "attn.k", "attn.v", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    names = [f"{layer}.{kind}" for layer in block for kind in ("weight", "bias")]
    assert [part.name for part in parts[:16]] == [f"blocks.0.{name}" for name in names]
    assert [part.name for part in parts[-2:]] == ["norm.weight", "norm.bias"]


def test_lora_on_v_leaves_q_and_k_alone() -> None:
    model = task(plain("vit"))
    model.selection = {"structured/blocks.0.attn.v": torch.tensor([4])}
    model.configure_model()
    qkv, x = model.backbone.blocks[0].attn.qkv, torch.randn(2, 5, 32)
    before = qkv(x)
    perturb(model, 0.1)
    after = qkv(x)
    assert torch.equal(after[..., :64], before[..., :64])
    assert not torch.equal(after[..., 64:], before[..., 64:])


@pytest.mark.parametrize("kind", ["lora", "adapter"])
def test_a_file_may_hold_the_selection_in_any_order(kind: str) -> None:
    outputs = []
    for order in ("qkv", "vkq"):
        model = task(plain("vit"), spt_kind=kind)
        model.selection = {f"structured/blocks.0.attn.{block}": torch.tensor([4]) for block in order}
        model.configure_model()
        generator = torch.Generator().manual_seed(0)
        values = {n: torch.randn(p.shape, generator=generator) for n, p in sorted(model.state_dict().items())}
        model.load_state_dict(values)
        outputs.append(model(torch.ones(1, 3, 32, 32)))
    assert torch.equal(*outputs)


def test_drop_path_leaves_out_whole_samples() -> None:
    """Each sample of each block has its whole update, scaled up, or none."""
    for kind in ("lora", "adapter"):
        model = task(plain("vit"), spt_kind=kind, spt_dropout=0.0, spt_drop_path=0.5)
        model.selection = {f"structured/blocks.0.attn.{block}": torch.tensor([4]) for block in ("q", "v", "proj")}
        model.configure_model()
        perturb(model, 0.1)
        qkv, x = model.backbone.blocks[0].attn.qkv, torch.randn(16, 5, 32)
        plain_output = F.linear(x, qkv.weight, qkv.bias)
        whole = qkv(x) - plain_output
        torch.manual_seed(0)
        dropped = qkv.train()(x) - plain_output
        kept = []
        for first in (0, 64):
            update, full = dropped[..., first : first + 32], whole[..., first : first + 32]
            is_kept = update.abs().sum((1, 2)) > 1e-3
            torch.testing.assert_close(update, 2 * full * is_kept[:, None, None], atol=1e-5, rtol=1e-5)
            kept.append(is_kept)
        assert 0 < int(kept[0].sum()) < 16
        assert not torch.equal(*kept)


def test_proj_sees_no_dropout() -> None:
    for kind in ("lora", "adapter"):
        model = task(plain("vit"), spt_kind=kind, spt_drop_path=0.0)
        model.selection = {f"structured/blocks.0.{op}": torch.tensor([4]) for op in ("attn.proj", "mlp.fc1")}
        model.configure_model()
        perturb(model, 0.1)
        x = torch.randn(2, 5, 32)
        for layer, same in ((model.backbone.blocks[0].attn.proj, True), (model.backbone.blocks[0].mlp.fc1, False)):
            expected = layer.eval()(x)
            assert torch.allclose(layer.train()(x), expected, atol=1e-6) == same


def test_adapter_on_proj_is_parallel() -> None:
    """``proj(x) + A(x)``, elsewhere ``y + A(y)`` of the layer's output."""
    model = task(plain("vit"), spt_kind="adapter")
    model.selection = {f"structured/blocks.0.{op}": torch.tensor([4]) for op in ("attn.proj", "mlp.fc1")}
    model.configure_model()
    perturb(model, 0.1)
    for layer, width in ((model.backbone.blocks[0].attn.proj, 32), (model.backbone.blocks[0].mlp.fc1, 128)):
        x = torch.randn(2, 5, 32)
        y = F.linear(x, layer.weight, layer.bias)
        bottleneck: Any = next(m for m in layer.modules() if isinstance(m, Bottleneck))
        assert bottleneck.down.weight.shape == (4, width)
        torch.testing.assert_close(layer(x), y + bottleneck(x if width == 32 else y))


@pytest.mark.parametrize("kind", ["lora", "adapter"])
def test_official_init(kind: str) -> None:
    options = {"spt_kind": kind, "spt_init": "official_trunc002", **SMALL}
    model = adapted(plain("vit"), scores(task(plain("vit"), **options)), **options)
    added = {n: p for n, p in model.named_parameters() if ".spt." in n}
    for name, parameter in added.items():
        assert (name.endswith("bias") and not parameter.any()) or 0.005 < parameter.detach().std() < 0.04, name
    assert not torch.equal(model(torch.ones(1, 3, 32, 32)), plain("vit")(torch.ones(1, 3, 32, 32)))


def test_norm_entries_can_be_left_out() -> None:
    made_up = scores(task(plain("vit"), **SMALL))
    with_norms, without = (
        adapted(plain("vit"), made_up, **SMALL, spt_beta=1.0, spt_train_norm_sparse=sparse) for sparse in (True, False)
    )
    of_norms = [name for name, module in with_norms.named_modules() if isinstance(module, Entries) and "norm" in name]
    assert of_norms
    assert not any(isinstance(module, Entries) and "norm" in name for name, module in without.named_modules())
    lost = sum(with_norms.get_submodule(name).values.numel() for name in of_norms)
    assert with_norms.parameter_counts()["method"] - lost == without.parameter_counts()["method"]


def test_a_trained_class_token_does_not_make_the_tokens_fp32() -> None:
    """It is fp32 beside bf16 tokens, and frozen norms take one dtype alone."""
    model = task(plain("vit"))
    model.selection = {"structured/blocks.0.attn.q": torch.tensor([4]), "entries/norm.bias": torch.tensor([1, 3])}
    model.configure_model()
    model.to(torch.bfloat16)
    seen: list[torch.dtype] = []
    model.backbone.blocks[1].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    model.loss(as_batch(torch.randn(2, 3, 32, 32, dtype=torch.bfloat16), torch.tensor([0, 1]))).backward()
    assert seen == [torch.bfloat16]
    assert model.backbone.cls_token.dtype is torch.float32
    assert model.backbone.cls_token.grad.any()


def test_what_decays() -> None:
    """The matrices of the modules and the head: no entry, vector or class token."""
    model = adapted(plain("vit"), scores(task(plain("vit"), **SMALL)), **SMALL, weight_decay=0.1)
    decayed = {id(p) for group in model.param_groups() if group["weight_decay"] for p in group["params"]}
    matrices = {n for n, p in model.named_parameters() if p.requires_grad and id(p) in decayed}
    assert matrices == {"backbone.head.weight"} | {n for n, _ in model.named_parameters() if ".spt." in n}


def test_bad_values_are_refused() -> None:
    for options in ({"spt_budget": 0}, {"spt_rank": 0}, {"spt_alpha": -1}, {"spt_beta": 0}, {"spt_dropout": 1.0}):
        name = next(iter(options))
        with pytest.raises(ValueError, match=f"{name}="):
            random_tiny("spt", **options)
    model = task(plain("vit"), **SMALL)
    made_up = scores(model)
    with pytest.raises(ValueError, match=r"no scores of the right shape for blocks\.0\.attn\.qkv\.weight"):
        model.select({n: s for n, s in made_up.items() if n != "blocks.0.attn.qkv.weight"})
    with pytest.raises(ValueError, match="at most the pool of"):
        task(plain("vit")).select(made_up)  # 0.4 million of 25 thousand
    model.selection, model.scorer = None, None
    with pytest.raises(ValueError, match="has no selection"):
        model.configure_model()


def test_only_the_chosen_entries_move(build: Any, data: Any, trainer: Any) -> None:
    """Also under weight decay: the entries beside the chosen ones are bit for bit those of the backbone."""
    model = build("spt", spt_granularity="unstructured_only", weight_decay=0.1, optimizer="adamw", lr=0.1)
    before = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}
    trainer(max_steps=3).fit(model, datamodule=data())
    chosen, merged = model.chosen("entries"), model.merge()
    assert chosen
    for name, tensor in before.items():
        after = merged.get_parameter(name)
        rest = torch.ones(after.numel(), dtype=torch.bool)
        if name in chosen:
            rest[chosen[name]] = False
        elif name == "cls_token" or name.startswith("head") or f"whole/{name}" in model.selection:
            continue
        assert torch.equal(after.flatten()[rest], tensor.flatten()[rest]), name


@pytest.mark.parametrize(
    ("name", "head", "stem"),
    [
        ("mobilenetv2_050", "classifier", "conv_stem"),
        ("resnet18", "fc", "conv1"),
        ("resnetv2_50x1_bit", "head", "stem"),
    ],
)
def test_neither_classifier_nor_stem_is_compared(name: str, head: str, stem: str) -> None:
    with torch.device("meta"):
        model = task(timm.create_model(name, num_classes=3))
    targets = model.score_targets()
    assert targets
    assert not [target for target in targets if target.startswith((head, stem))]
