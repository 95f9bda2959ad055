"""VeLoRA; the contract suite tests it stacked on LoRA."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from callbacks.measures import SavedBytes
from datamodules import ImageDataset
from lightning_modules.batch import Batch
from methods import PEFTMethod
from methods.layers.sub_tokens import CompressedLinear, CompressedScaleShift, Direction, project
from tests.conftest import BACKBONE, TINY, build_tiny, composed
from tests.methods.test_lora import copy_from_peft
from tests.support.batches import as_batch
from tests.support.golden import GRADIENTS, Golden, head_parameters
from tests.support.ranks import TwoRanks

COUNTS = {"vit_base_patch16_224": 294_912, "vit_tiny_patch16_224": 73_728}  # LoRA's: nothing is added
IDENTITY: dict[str, Any] | None = {}
Build = Callable[..., PEFTMethod]
Data = Callable[..., ImageDataset]
Images = tuple[Tensor, Tensor]


def check_functions(golden: Golden) -> None:
    """One linear layer, one scale-shift, and the three ways to follow the mean."""
    groups, s, decay = (float(golden.tensors["meta.hparams"][i]) for i in (5, 4, 6))
    for name, keys in {"linear": ("weight", "bias"), "ssf": ("scale", "shift")}.items():
        case = golden.part(f"fn.{name}")
        x = case["x"].clone().requires_grad_()
        parameters = [case[key].clone().requires_grad_() for key in keys]
        assert case["v"].numel() * groups == x.shape[-1]
        torch.testing.assert_close(project(x, case["v"]).flatten(), case["zp"], atol=1e-6, rtol=0)
        function: Any = CompressedLinear if name == "linear" else CompressedScaleShift
        y = function.apply(x if name == "linear" else x + 0, *parameters, case["v"], s)
        # of a y of 10, the last bit of fp32 is 1e-6: a plain linear layer differs by two of them between CPUs
        torch.testing.assert_close(y, case["y"], atol=1e-6, rtol=1e-6)
        y.backward(case["grad_y"])
        for key, tensor in {"x": x, **dict(zip(keys, parameters, strict=True))}.items():
            torch.testing.assert_close(tensor.grad, case[f"grad_{key}"], atol=GRADIENTS, rtol=0, msg=f"{name} {key}")
    case = golden.part("fn.init")
    for kind in ("batch_average_once", "batch_average", "running_average"):
        direction = Direction(case[kind].shape[1], 1.0, kind, decay)  # type: ignore[arg-type]
        for x, expected in zip(case["x"], case[kind], strict=True):
            direction.observes_next |= kind != "batch_average_once"
            torch.testing.assert_close(direction(x), expected, atol=1e-6, rtol=0)


def check_velora(golden: Golden) -> None:
    """LoRA on three layers of each block, two of them compressed; v comes from the first of two batches."""
    check_functions(golden)
    rank, alpha, _, _, s = golden.tensors["meta.hparams"][:5].tolist()
    values, v = golden.part("peft"), golden.part("v")
    last = {name.rpartition(".")[2]: tensor for name, tensor in v.items()}
    model = golden.build(
        "lora+velora",
        lora_targets=sorted({name.split(".")[3] for name in values}),
        lora_rank=int(rank),
        lora_alpha=alpha,
        lora_scaling="alpha/r",
        velora_targets=list(last),
        velora_sizes={name: tensor.numel() for name, tensor in last.items()},
        velora_scale=s,
    )
    ours = copy_from_peft(model, values)
    model.train()
    for number in ("1", "2"):
        for name in ("input", "label", "logits", "loss"):
            golden.tensors[name] = golden.tensors[f"{name}{number}"]
        golden.tensors = {n: t for n, t in golden.tensors.items() if not n.startswith("grad.")}
        golden.tensors |= {f"grad.{n}": t for n, t in golden.part(f"grad{number}").items()}
        golden.check_logits(model)
        golden.check_gradients(model, ours | head_parameters(model))
        found = {n.removesuffix(".velora.v"): t for n, t in model.backbone.named_buffers() if n.endswith(".velora.v")}
        assert set(found) == set(v)
        for name, tensor in v.items():
            torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=0, msg=name)
    model.eval()
    golden.check_merge(model)


GOLDEN = {"velora": check_velora}


def batch(seed: int = 3, size: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch.of(torch.randn(size, 3, 32, 32, generator=generator), torch.arange(size) % 3)


STACKS: dict[str, dict[str, Any]] = {
    "lora+velora": {},
    "velora+lora": {"lora_targets": ["qkv", "fc1", "fc2"], "velora_targets": ["qkv", "fc2"]},
    "qlora+velora": {"lora_targets": ["fc2"]},
    "fact+velora": {},
    "bi_adapter+velora": {"bi_form": "lora", "bi_dim": 1},
    "ssf+velora": {},
    "full+velora": {"velora_targets": ["qkv", "proj", "fc1", "fc2"]},
    "adapter+velora": {},
    "bitfit+lora+velora": {},
}


@pytest.mark.parametrize("stack", STACKS)
def test_same_outputs_fewer_bytes(stack: str, build: Build) -> None:
    """With and without it: logits, merged model, names of what trains; v and z are in no evaluation."""
    host = "+".join(name for name in stack.split("+") if name != "velora")
    options = STACKS[stack]
    models = [
        build(host, **{n: v for n, v in options.items() if not n.startswith("velora")}),
        build(stack, **options),
    ]
    saved, logits, grads = [], [], []
    for model in models:
        model.configure_model()
        for parameter, other in zip(model.parameters(), models[0].parameters(), strict=True):
            parameter.data.copy_(other.data)
        model.train()
        if model is models[1]:
            model.calibrate(batch())  # type: ignore[operator]
        torch.manual_seed(5)
        with SavedBytes(model) as counter:
            loss = model.loss(batch())
        saved.append(counter.bytes)
        loss.backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
        with torch.no_grad():
            logits.append(
                (loss.detach(), model.eval()(batch().inputs), model.merge()(batch().inputs) if model.mergeable else 0)
            )
    torch.testing.assert_close(logits[0], logits[1], atol=1e-6, rtol=0)
    assert torch.equal(logits[0][1], logits[1][1])
    assert saved[1] < saved[0]
    assert grads[0].keys() == grads[1].keys()
    wrong = [n for n, g in grads[1].items() if not torch.allclose(g, grads[0][n], atol=1e-6)]
    kinds = ("lora.A", "fact", "ssf.scale", "weight")
    assert wrong or "lora" in stack  # where B is zero, A has no gradient yet
    assert all(any(kind in name for kind in kinds) for name in wrong), wrong


def test_a_quarter_less_for_lora_on_fc2() -> None:
    """ViT-Ti, two images: the goal is 0.72 of what LoRA keeps there."""
    saved = []
    for method in ("lora", "lora+velora"):
        options = {"lora_targets": ["fc2"]} | ({"velora_size": 32} if "velora" in method else {})
        model: Any = composed(method)(backbone=BACKBONE, pretrained=False, num_classes=3, **options)
        model.configure_model()
        with SavedBytes(model) as counter:
            model.train().loss(as_batch(torch.randn(2, 3, 224, 224), torch.tensor([0, 1])))
        saved.append(counter.bytes)
    assert saved[1] <= 0.72 * saved[0]


def test_peft_computes_the_same(build: Build) -> None:
    """Two batches through HF peft's LoRA with its own VeLoRA."""
    model: Any = build("lora+velora", lora_targets=["fc2"], lora_rank=4, velora_size=16, velora_scale=0.5)
    model.configure_model()
    other = build("linear_probe")
    other.configure_model()
    config = peft.LoraConfig(
        r=4,
        lora_alpha=4,
        target_modules=["fc2"],
        velora_config=peft.VeloraConfig(num_groups=12, scale=0.5, init_type="batch_average_once"),
    )
    peft.inject_adapter_in_model(config, other.backbone)
    pairs = []
    for ours, theirs in zip(model.backbone.blocks, other.backbone.blocks, strict=True):
        lora = theirs.mlp.fc2
        pairs += [(ours.mlp.fc2.lora.A, lora.lora_A["default"].weight)]
        pairs += [(ours.mlp.fc2.lora.B, lora.lora_B["default"].weight)]
    for mine, their in pairs:
        their.data.copy_(nn.init.normal_(mine, std=0.1))
    model.train()
    other.train()
    for seed in (1, 2):
        losses = [m.loss(batch(seed)) for m in (model, other)]
        torch.testing.assert_close(*losses)
        for loss in losses:
            loss.backward()
        for mine, their in pairs:
            torch.testing.assert_close(mine.grad, their.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("init", ["batch_average_once", "running_average"])
def test_recomputed_blocks_give_the_same(init: str, build: Build) -> None:
    """Under non-reentrant checkpoints v moves once a batch, and gradients are equal bit by bit."""
    results = []
    for recompute in (False, True):
        model: Any = build("lora+velora", lora_targets=["qkv", "fc2"], velora_init=init)
        model.configure_model()
        for module in model.modules():
            if hasattr(module, "lora"):
                nn.init.normal_(module.lora.B, std=0.02)
        model.backbone.set_grad_checkpointing(recompute)
        model.train()
        for seed in (1, 2):
            model.zero_grad()
            model.on_train_batch_start(batch(seed), 0)
            model.loss(batch(seed)).backward()
        results.append(
            {n: p.grad for n, p in model.named_parameters() if p.requires_grad} | dict(model.named_buffers())
        )
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


@pytest.mark.parametrize("stack", ["lora+velora", "ssf+velora", "full+velora", "qlora+velora"])
def test_bf16_autocast(stack: str, build: Build) -> None:
    """Gradients stay fp32 and near those of fp32; z is kept in bf16."""
    model: Any = build(stack, **({"lora_targets": ["fc2"]} if "lora" in stack.split("velora")[0] else {}))
    model.configure_model()
    for module in model.modules():
        if hasattr(module, "lora"):
            nn.init.normal_(module.lora.B, std=0.1)
    model.train().calibrate(batch(size=32))
    low = copy.deepcopy(model)
    model.loss(batch(size=32)).backward()
    with torch.autocast("cpu", torch.bfloat16), SavedBytes(low):
        loss = low.loss(batch(size=32))
    loss.backward()
    for (name, parameter), other in zip(model.named_parameters(), low.parameters(), strict=True):
        if "fc2" in name and parameter.requires_grad:
            assert other.grad.dtype is torch.float32
            # a plain bias is off by 2 % too: eight bits, rounded in every layer
            assert (other.grad - parameter.grad).norm() <= 0.05 * parameter.grad.norm(), name
    layer = low.backbone.blocks[0].mlp.fc2
    x = torch.randn(10, 192, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), SavedBytes(layer) as saved:
        y = layer(x)
    assert y.dtype is torch.bfloat16
    hidden = 8 if hasattr(layer, "lora") else 0
    groups = {"lora+velora": 12, "qlora+velora": 12, "ssf+velora": 48 // 16, "full+velora": 192 // 32}[stack]
    rest = 2 * layer.weight.numel() if stack == "ssf+velora" else 0  # autocast's copy of a frozen weight
    assert saved.bytes == 2 * 10 * (groups + hidden) + rest


def test_calibration_changes_nothing_else(build: Build, data: Data) -> None:
    model: Any = build("lora+velora", drop_path=0.5)
    model.configure_model()
    model.eval()
    before = {n: t.clone() for n, t in model.state_dict().items() if "velora" not in n}
    state = torch.get_rng_state()
    model.on_train_batch_start(batch(), 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert all(torch.equal(model.state_dict()[n], t) for n, t in before.items())
    assert all(p.grad is None for p in model.parameters())
    drawn = {n: t.clone() for n, t in model.state_dict().items() if "velora" in n}
    assert all(t.norm() == pytest.approx(1, abs=1e-5) for t in drawn.values())
    model.on_train_batch_start(batch(9), 1)
    assert all(torch.equal(model.state_dict()[n], t) for n, t in drawn.items())


def test_v_is_in_the_checkpoint(build: Build, data: Data, trainer: Any, tmp_path: Path) -> None:
    fit, model = trainer(max_steps=2), build("lora+velora")
    fit.fit(model, datamodule=data())
    fit.save_checkpoint(tmp_path / "model.ckpt")
    drawn = {n: t for n, t in model.state_dict().items() if n.endswith("velora.v")}
    assert len(drawn) == 2
    again: Any = PEFTMethod.load_from_checkpoint(tmp_path / "model.ckpt").train()
    again.on_train_batch_start(batch(), 0)
    again.loss(batch())
    for name, value in drawn.items():
        assert torch.equal(again.state_dict()[name], value), name


def calibrated(weights: Path, images: Images) -> dict[str, Tensor]:
    """The vectors that a batch makes."""
    model: Any = build_tiny(weights, "lora+velora")
    model.configure_model()
    model.train().calibrate(images)
    return {n: t for n, t in model.state_dict().items() if "velora" in n}


def calibrated_on_a_rank(rank: int, weights: Path) -> dict[str, Tensor]:
    torch.distributed.init_process_group("gloo")
    return calibrated(weights, batch(rank))


def test_ranks_agree(two_ranks: TwoRanks, weights: Path) -> None:
    """Each sees a batch of its own; v is that of one process which sees both."""
    ranks = two_ranks(calibrated_on_a_rank, weights)
    both = Batch(*(torch.cat(parts) for parts in zip(batch(0), batch(1), strict=True)))
    for name, value in calibrated(weights, both).items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        torch.testing.assert_close(value, ranks[0][name])


@pytest.mark.parametrize(
    ("stack", "options", "idle"),
    [
        ("lora+velora", {"lora_targets": ["qkv", "fc2"]}, 0),
        ("lora+velora", {"lora_targets": ["proj", "fc1"]}, 0),
        ("lora+velora", {"lora_targets": ["proj"], "velora_targets": ["proj"]}, 1),  # attention keeps its output
        ("fact+velora", {}, 0),
        ("full+velora", {}, 0),
        ("ssf+velora", {}, 0),
        ("ssf+velora", {"velora_targets": ["qkv", "fc1"]}, 4),  # attention and GELU keep them
        ("adaptformer+velora", {}, 1),  # but for the first block, where no gradient goes, the norm keeps the stream
    ],
)
def test_says_where_nothing_is_saved(
    stack: str, options: dict[str, Any], idle: int, build: Build, data: Data, trainer: Any
) -> None:
    model: Any = build(stack, **options)
    model.configure_model()
    names = model.idle()
    assert len(names) == idle
    assert all(not d.v.any() and d.observes_next for d in model.directions().values())  # it looked, and drew nothing
    if idle:
        with pytest.warns(UserWarning, match=rf"nothing is saved at {names[0]}.*keeps the same tensor"):
            trainer(max_steps=1).fit(build(stack, **options), datamodule=data())


def test_every_init_fits(build: Build, data: Data, trainer: Any) -> None:
    for init in ("batch_average", "running_average", "random", "svd"):
        model: Any = build("lora+velora", velora_init=init)
        trainer(max_steps=2).fit(model, datamodule=data())
        assert all(d.v.norm() == pytest.approx(1, abs=1e-5) for d in model.directions().values())


@pytest.mark.parametrize(
    ("stack", "options", "message"),
    [
        ("velora", {}, "VeLoRA saves memory of trained linear layers and scale-shifts, and this model has none"),
        ("bitfit+velora", {}, "a frozen layer keeps no input. Stack it on"),
        ("lora+velora", {"velora_targets": ["fc1"]}, "fc1 does not train .* saves nothing for it.*trained are: qkv"),
        ("lora+velora", {"velora_targets": ["fc3"]}, "no linear layer's name ends with 'fc3'; near: fc"),
        ("lora+velora", {"velora_targets": ["head"]}, "no linear layer's name ends with 'head'"),
        ("lora+velora", {"velora_targets": []}, "velora_targets is empty"),
        ("lora+velora", {"velora_size": 7}, r"velora_size=7 does not divide the 48 channels of blocks\.0\.attn\.qkv"),
        ("lora+velora", {"velora_size": 7}, "one such as 3, 4, 6, 8, or velora_pad=true"),
        ("lora+velora", {"velora_size": 96, "velora_pad": True}, "velora_size=96 is more than the 48 channels"),
        ("lora+velora", {"velora_size": 0}, "velora_size=0: expected at least 1"),
        ("lora+velora", {"velora_sizes": {"qkv": -2}}, "=-2: expected at least 1"),
        ("lora+velora", {"velora_sizes": {"fc1": 2}}, "velora_sizes names fc1, which no compressed layer"),
        ("lora+velora", {"velora_scale": 0.0}, "velora_scale=0.0: expected a positive factor"),
        ("lora+velora", {"velora_decay": 1.0}, "velora_decay=1.0: expected a weight"),
    ],
    ids=str,
)
def test_refusals(stack: str, options: dict[str, Any], message: str, weights: Path) -> None:
    from lightning_modules.classification import Classification
    from methods import METHODS, compose

    cls = compose(*(METHODS[name] for name in stack.split("+")), task=Classification)
    with pytest.raises(ValueError, match=message):
        cls(backbone=BACKBONE, backbone_args=TINY, pretrained=str(weights), num_classes=3, **options).configure_model()
