"""DyT."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from callbacks.cost import Cost
from callbacks.measures import flop_counter
from datamodules import ImageDataset
from lightning_modules.classification import Classification
from lightning_modules.task import total
from methods import METHODS, PEFTMethod, compose
from tests.support.batches import as_batch
from tests.support.golden import GRADIENTS, LOGITS, Golden, head_parameters

Build = Callable[..., PEFTMethod]
VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 5}
PLACES = ("mlp", "attention", "attention_mlp", "layer")

COUNTS = {"vit_base_patch16_224": 165_996, "vit_large_patch16_224": 442_584}
IDENTITY: dict[str, Any] | None = None  # from step 0 about half of the tokens skip every MLP


def check_dyt(golden: Golden) -> None:
    tensors, weights, method = golden.tensors, golden.part("peft"), golden.config["method"]
    model: Any = golden.build(
        "dyt",
        dyt_dim=method["bottleneck"],
        dyt_scale=method["scale"],
        dyt_rate=method["rate"],
        dyt_temperature=float(tensors["hp.tau"]),
        dyt_rate_weight=float(tensors["hp.alpha"]),
        dyt_dropout=0.0,
    )
    ours = {}
    for name, value in weights.items():
        block, _, path = name.removeprefix("blocks.").partition(".")
        ours[name] = model.backbone.get_parameter(f"blocks.{block}.dyt_mlp.{path}")
        ours[name].data.copy_(value.view_as(ours[name]))

    def equal(found: Tensor, name: str) -> None:
        torch.testing.assert_close(
            found, tensors[name].view_as(found), atol=LOGITS, rtol=0, msg=lambda t: f"{name}: {t}"
        )

    ops = list(model.dispatches.values())
    with torch.no_grad():
        for skip, last in (("auto", True), ("auto", False), ("dense", False)):
            for op in ops:
                op.skip, op.prefix_only = skip, last and op is ops[-1]
            equal(model(tensors["input"]), "eval.logits")
            equal(model(tensors["input"], complete=True), "eval.logits_complete")
        logits: list[Tensor] = []

        def keep(op: Any, decide: Any, x: torch.Tensor) -> torch.Tensor:
            logits.append(op.dispatcher(x[:, op.prefix :]).squeeze(-1))
            return decide(x)

        for op in ops:
            op.decide = partial(keep, op, op.decide)
        with model.masks() as masks:
            model(tensors["input"])
        equal(torch.stack(logits, 1), "eval.dispatcher_logits")
        assert torch.equal(torch.stack(masks, 1).float(), tensors["eval.mask"])
        for op in ops:
            del op.decide

    for index, op in enumerate(ops):
        op.noise = lambda logits, index=index: tensors["train.noise"][:, index]
    model.train()
    with model.masks() as masks:
        equal(model(tensors["input"]), "train.logits")
    assert torch.equal(torch.stack(masks, 1), tensors["train.mask"])
    equal(model(tensors["input"], complete=True), "train.logits_complete")

    terms = model.terms(as_batch(tensors["input"], tensors["label"]))
    equal(total(terms), "train.loss_total")
    equal(terms["task_loss"], "train.loss_cls")
    equal(terms["rate_loss"], "train.loss_rate_times_alpha")
    equal(terms["complete_loss"], "train.loss_complete")
    equal(terms["distill_loss"], "train.loss_distill")
    total(terms).backward()
    expected = golden.part("grad")
    ours |= head_parameters(model)
    assert set(expected) == set(ours)
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name].grad.view_as(gradient), gradient, atol=GRADIENTS, rtol=0)


GOLDEN = {"dyt": check_dyt}


def adapted(backbone: nn.Module | None = None, **options: Any) -> Any:
    """A method on a small random backbone, every tensor moved away from its start, in eval mode."""
    torch.manual_seed(0)
    plain = backbone or VisionTransformer(**VIT)

    class Task(Classification):
        def build(self) -> None:
            self.backbone = plain

    model = type("Small", (METHODS["dyt"], Task), {})(num_classes=5, **options)
    model.configure_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def on_meta(backbone: str, **options: Any) -> Any:
    """A method on a large backbone without memory for its weights."""
    with torch.device("meta"):
        model = compose(METHODS["dyt"], task=Classification)(backbone=backbone, pretrained=False, **options)
        model.adapt(model.backbone)
    return model.eval()


def set_skip(model: Any, skip: str, last: bool = False) -> None:
    ops = list(model.dispatches.values())
    for op in ops:
        op.skip, op.prefix_only = skip, last and op is ops[-1]


def force(model: Any, logit: float) -> None:
    """Give every patch token the same dispatcher logit."""
    for op in model.dispatches.values():
        nn.init.zeros_(op.dispatcher.weight)
        nn.init.constant_(op.dispatcher.bias, logit)


@pytest.mark.parametrize(
    ("backbone", "options", "count"),
    [
        ("base", {"dyt_dim": 1}, 36_888),
        ("base", {"dyt_dim": 4}, 92_220),
        ("base", {"dyt_dim": 16}, 313_548),
        ("base", {"dyt_dim": 64}, 1_198_860),
        ("base", {"dyt_dim": 256}, 4_740_108),
        ("base", {"dyt_dim": 64, "dyt_experts": 4}, 4_804_668),
        ("base", {"dyt_dim": 64, "dyt_place": "attention_mlp"}, 2 * 1_198_860),
        ("base", {"dyt_dim": 64, "dyt_place": "attention"}, 1_198_860),
        ("base", {"dyt_dim": 64, "dyt_place": "layer"}, 1_198_860),
        ("large", {"dyt_dim": 64}, 3_196_440),
    ],
)
def test_counts(backbone: str, options: dict[str, Any], count: int) -> None:
    model = on_meta(f"vit_{backbone}_patch16_224", **options)
    assert sum(p.numel() for op in model.dispatches.values() for p in op.parameters()) == count


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("images", [1, 5])
def test_skipping_equals_masking(place: str, images: int) -> None:
    """Gathered, padded and scattered tokens give what the dense masked form gives."""
    model, x = adapted(dyt_place=place, dyt_dim=4), torch.randn(images, 3, 32, 32)
    with torch.no_grad(), model.masks() as masks:
        gathered = model(x)
        set_skip(model, "gather")
        features = model.features(x)
        set_skip(model, "dense")
        torch.testing.assert_close(model(x), gathered, atol=1e-5, rtol=0)
        torch.testing.assert_close(model.features(x), features, atol=1e-5, rtol=0)
    kept = torch.stack(masks).float()
    assert 0.05 < float(kept.mean()) < 0.95, "the test is to mix both"
    assert images == 1 or len(set(kept[0].sum(1).tolist())) > 1, "images keep different numbers of tokens"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_all_or_no_tokens(place: str, prefix: int) -> None:
    """No kept token in a whole batch runs too, with and without class and register tokens."""
    shape = VIT | ({"class_token": False, "global_pool": "avg"} if prefix == 0 else {"reg_tokens": prefix - 1})
    model, x = adapted(VisionTransformer(**shape), dyt_place=place), torch.randn(3, 3, 32, 32)
    for logit in (-1.0, 1.0):
        force(model, logit)
        with torch.no_grad():
            skipping = model(x)
            set_skip(model, "dense")
            torch.testing.assert_close(skipping, model(x), atol=1e-5, rtol=0)
            set_skip(model, "gather", last=place == "mlp" and prefix > 0)
            assert skipping.isfinite().all()
            assert torch.allclose(skipping, model(x, complete=True), atol=1e-5) == (logit > 0)


def test_block() -> None:
    """x' = x + A(x) + M' mlp(norm2(x)), the dispatcher fed by the un-normalised stream, a tie is no keeping."""
    model = adapted(VisionTransformer(**VIT, init_values=0.3), dyt_scale=0.5)
    block, x = model.backbone.blocks[0], torch.randn(2, 17, 32)
    op = block.dyt_mlp
    force(model, 0.0)
    with torch.no_grad():
        assert not op.decide(x)[:, 1:].any()
        op.dispatcher.weight.normal_()
        x1 = x + block.ls1(block.attn(block.norm1(x)))
        kept = F.pad(x1[:, 1:] @ op.dispatcher.weight[0] > 0, (1, 0), value=True)
        mlp = block.ls2(block.mlp(F.layer_norm(x1, (32,), block.norm2.weight, block.norm2.bias, block.norm2.eps)))
        adapter = 0.5 * op.adapter.up(torch.relu(op.adapter.down(x1)))
        torch.testing.assert_close(block(x), x1 + adapter + kept.unsqueeze(-1) * mlp, atol=1e-5, rtol=0)
    assert op.stream is op.mask is op.rows is None


@pytest.mark.parametrize("place", PLACES)
def test_zero_adapters_and_complete_equal_the_frozen_backbone(place: str, build: Build) -> None:
    x = torch.randn(2, 3, 32, 32)
    model: Any = build("dyt", dyt_place=place).eval()
    with torch.no_grad():
        frozen = model.backbone(x)
        model.configure_model()
        torch.testing.assert_close(model(x, complete=True), frozen, atol=1e-6, rtol=0)
        assert not torch.allclose(model(x), frozen, atol=1e-6)


def test_rate_loss_pulls_the_logits() -> None:
    """2 (mean - r)^2: below the asked share the dispatcher's bias goes up, above it down."""
    batch = as_batch(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]))
    for rate in (0.05, 1.0):
        model = adapted(dyt_rate=rate, dyt_teacher="none").train()
        terms = model.terms(batch)
        torch.testing.assert_close(terms["rate_loss"], 2 * (model.last_kept - rate) ** 2)
        assert set(terms) == {"task_loss", "rate_loss"}
        # only the rate reaches the dispatcher of the last block: nobody reads its patch tokens
        model.loss(batch).backward()
        slope = float(model.backbone.blocks[-1].dyt_mlp.dispatcher.bias.grad)
        assert (slope < 0) == (rate == 1.0)
        assert slope != 0


def test_teacher_terms() -> None:
    """KL is 0 where both passes agree, and the teacher gets no gradient of it."""
    batch = as_batch(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]))
    model = adapted(dyt_dropout=0.0).train()
    force(model, 1e3)
    assert float(model.terms(batch)["distill_loss"].detach()) == pytest.approx(0, abs=1e-6)
    force(model, -1e3)
    teachers: list[Tensor] = []
    plain_forward = model.forward

    def forward(inputs: Tensor, complete: bool = False) -> Tensor:
        y = plain_forward(inputs, complete)
        if complete:
            y.retain_grad()
            teachers.append(y)
        return y

    model.forward = forward
    terms = model.terms(batch)
    total(terms).backward()
    assert terms["distill_loss"] > 1e-5
    probabilities = teachers[0].softmax(1) - F.one_hot(batch.targets, 5)
    torch.testing.assert_close(teachers[0].grad, probabilities.detach() / 4, atol=1e-6, rtol=0)


def test_last_masks_do_not_reach_the_logits() -> None:
    model, x = adapted(dyt_drop_last=False), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        for logit in (-1.0, 1.0):
            last = model.backbone.blocks[-1].dyt_mlp.dispatcher
            nn.init.zeros_(last.weight)
            nn.init.constant_(last.bias, logit)
            torch.testing.assert_close(model(x), expected, atol=1e-6, rtol=0)
        set_skip(model, "auto", last=True)
        torch.testing.assert_close(model(x), expected, atol=1e-6, rtol=0)
        averaging = adapted(VisionTransformer(**VIT, global_pool="avg"))
        assert not any(op.prefix_only for op in averaging.dispatches.values())


def test_experts_in_a_model() -> None:
    model, x = adapted(dyt_experts=3), torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        gathered = model(x)
        set_skip(model, "dense")
        torch.testing.assert_close(model(x), gathered, atol=1e-5, rtol=0)
    model.train().loss(as_batch(x, torch.tensor([0, 1, 2, 3]))).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_attention_mask_of_training() -> None:
    """With key masks a skipping token leaves no trace in the others; Eq. 5 of the paper lets it."""
    x = torch.randn(2, 3, 32, 32)
    for option, equal in (("keys", True), ("output_only", False)):
        model = adapted(dyt_place="attention", dyt_attention_mask=option, dyt_dropout=0.0)
        for op in model.dispatches.values():
            op.noise = torch.zeros_like
        with torch.no_grad():
            skipping = model(x)
            assert torch.allclose(model.train()(x), skipping, atol=1e-5) == equal


@pytest.mark.parametrize("place", PLACES)
def test_flops_are_those_of_the_formula(place: str) -> None:
    """Counted multiply-adds of what ran against section 4's formula with the kept tokens K, without its LayerNorms."""
    model, x = adapted(dyt_place=place, dyt_dim=6, dyt_drop_last=False), torch.randn(3, 3, 32, 32)
    tokens, width = 17, 32
    with torch.no_grad(), flop_counter() as counter, model.masks() as masks:
        model(x)
    # per image; images of a dispatched attention are padded to the longest
    total = 3 * (16 * width * 3 * 8**2 + width * 5)
    for name, mask in zip(model.dispatches, masks, strict=True):
        kept, longest = 3 + int(mask.sum()), 1 + int(mask.sum(1).max())
        attention = 3 * (4 * longest * width**2 + 2 * longest**2 * width)
        full_attention = 3 * (4 * tokens * width**2 + 2 * tokens**2 * width)
        kind = name.rpartition("_")[2]
        total += {
            "mlp": 8 * kept * width**2 + (full_attention if place == "mlp" else 0),
            "attention": attention + (8 * 3 * tokens * width**2 if place == "attention" else 0),
            "layer": attention + 8 * 3 * longest * width**2,
        }[kind]
        total += 3 * (2 * tokens * width * 6 + 16 * width)  # adapter and dispatcher
    assert counter.get_total_flops() == 2 * total


@pytest.mark.parametrize(("width", "gigaflops"), [(8, 17.611), (64, 17.814)])
def test_flops_of_the_table(width: int, gigaflops: float) -> None:
    """ViT-B/16 with adapters and no skipping; the table counts LayerNorms, a counter of matrix products does not."""
    model = on_meta("vit_base_patch16_224", dyt_dim=width).to_empty(device="cpu")
    for op in model.dispatches.values():
        op.complete, op.prefix_only = True, False
    with torch.no_grad(), flop_counter() as counter:
        model.features(torch.zeros(1, 3, 224, 224))
    norms = (12 * 2 + 1) * 5 * 197 * 768
    assert (counter.get_total_flops() / 2 + norms) / 1e9 == pytest.approx(gigaflops, abs=6e-4)


def test_eva_and_layer_scale() -> None:
    """Rotary ViTs (EVA, DINOv3) are dispatched at their MLPs; their attention knows places, and is refused."""
    eva = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
    model, x = adapted(Eva(**eva, use_rot_pos_emb=True, init_values=0.1)), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        gathered = model(x)
        set_skip(model, "dense")
        torch.testing.assert_close(model(x), gathered, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="dyt_place='layer': the attention of Eva"):
        adapted(Eva(**eva), dyt_place="layer")


def test_compiled_models_mask() -> None:
    """The number of kept tokens is data: a graph without breaks has to mask."""
    model, x = adapted(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        exported = torch.export.export(model.backbone, (x,)).module()
        torch.testing.assert_close(exported(x), model(x), atol=1e-5, rtol=0)


def test_evaluation_reports_what_ran(
    build: Build, data: Callable[..., ImageDataset], trainer: Callable[..., Any], tmp_path: Path
) -> None:
    model: Any = build("dyt")
    cost = Cost()
    run = trainer(callbacks=[cost], limit_train_batches=2)
    run.fit(model, datamodule=data())
    logged = {name: float(value) for name, value in run.callback_metrics.items()}
    assert logged["val/kept/1.dyt_mlp"] == 0  # the last block runs for the class token alone
    assert logged["val/kept/all"] == pytest.approx(logged["val/kept/0.dyt_mlp"] / 2)
    assert {"train/kept", "train/rate_loss", "train/distill_loss", "train/complete_loss"} <= set(logged)
    terms = [logged[f"train/{name}_loss"] for name in ("task", "rate", "distill", "complete")]
    assert logged["train/loss"] == pytest.approx(sum(terms), rel=1e-5)

    assert (tmp_path / "kept_tokens.png").stat().st_size > 1000
    (tmp_path / "kept_tokens.png").unlink()
    run.test(model, datamodule=data(), verbose=False)
    assert (tmp_path / "kept_tokens.png").exists()
    batches: list[Any] = [run.datamodule.on_after_batch_transfer(b, 0) for b in run.datamodule.test_dataloader()]
    images = torch.cat([batch.inputs for batch in batches])
    with torch.no_grad(), flop_counter() as counter, model.eval().masks() as masks:
        model(images)
    assert 0.05 < float(masks[0].float().mean()) < 0.95
    assert cost.values["cost/gflops"] == pytest.approx(counter.get_total_flops() / len(images) / 1e9)
    assert float(run.callback_metrics["test/kept/0.dyt_mlp"]) == pytest.approx(float(masks[0].float().mean()))


def test_rate_of_all_processes() -> None:
    """The mean over ranks enters the loss, with the gradient of each rank's own share."""
    model = adapted(dyt_sync_rate=True, dyt_teacher="none").train()
    model.trainer = SimpleNamespace(world_size=2)
    model.all_gather = lambda kept, sync_grads: torch.stack([kept, torch.ones_like(kept)])
    batch = as_batch(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
    with model.masks() as masks:
        torch.manual_seed(1)
        model(batch.inputs)
    torch.manual_seed(1)
    terms = model.terms(batch)
    kept = (torch.cat([mask.flatten() for mask in masks]).mean() + 1) / 2
    torch.testing.assert_close(terms["rate_loss"], 2 * (kept.detach() - 0.5) ** 2)


def test_same_noise_same_student() -> None:
    model, x = adapted(dyt_dropout=0.0).train(), torch.randn(2, 3, 32, 32)
    outputs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outputs.append(model(x))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_other_use_leaves_nothing_behind() -> None:
    """A training pass outside the loss, a failing pass: the model can be copied and keeps its dispatchers."""
    model, x = adapted(dyt_place="attention_mlp", dyt_dropout=0.0), torch.randn(2, 3, 32, 32)
    expected = model(x, complete=True)
    model.train()(x).sum().backward()
    copy.deepcopy(model)
    model.backbone.blocks[0].mlp.register_forward_pre_hook(fail := MagicMock(side_effect=RuntimeError))
    with pytest.raises(RuntimeError):
        model.eval()(x)
    fail.side_effect = None
    fail.return_value = None
    assert torch.equal(model(x, complete=True), expected)
    assert not any(op.complete or op.record is not None for op in model.dispatches.values())


@pytest.mark.parametrize(
    "option",
    [
        {"dyt_rate": 0.0},
        {"dyt_rate": 1.1},
        {"dyt_dim": 0},
        {"dyt_experts": 0},
        {"dyt_dropout": 1.0},
        {"dyt_temperature": 0.0},
        {"dyt_rate_weight": -1.0},
    ],
)
def test_refusals(option: dict[str, Any], build: Build) -> None:
    name, value = next(iter(option.items()))
    with pytest.raises(ValueError, match=f"{name}={value}: expected"):
        build("dyt", **option)


@pytest.mark.parametrize("backbone", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "resnet18"])
def test_backbones_without_one_sequence_are_refused(backbone: str) -> None:
    """Before any image is read: the model cannot even be built."""
    with pytest.raises(ValueError, match="is not known to have one sequence of tokens"):
        compose(METHODS["dyt"], task=Classification)(backbone=backbone, pretrained=False)
