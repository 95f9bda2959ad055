"""VeRA."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from checkpoints.delta import WEIGHTS, write_adapter
from methods import PEFTMethod
from methods.vera import RandomMatrices, VeRAUpdate
from tests.conftest import BACKBONE, TINY, checkpoint_of, composed, perturb

COUNTS = {"vit_base_patch16_224": 24_576}  # the paper prints 24.6K
IDENTITY: dict[str, Any] | None = {}
Build = Callable[..., PEFTMethod]


def updates(model: PEFTMethod) -> list[VeRAUpdate]:
    return [module for module in model.modules() if isinstance(module, VeRAUpdate)]


def images(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_count_of_a_large_vit() -> None:
    """One block of ViT-L/16 has a 24th of the 61,440 parameters of the whole, the paper's 61.4K."""
    options: dict[str, Any] = {"backbone_args": {"depth": 1}, "pretrained": False, "num_classes": 3}
    model = composed("vera")(backbone="vit_large_patch16_224", **options)
    model.configure_model()
    assert 24 * model.parameter_counts()["method"] == 61_440


def test_one_pair_of_matrices_for_each_shape(build: Build) -> None:
    model = build("vera", vera_targets=["q", "v", "proj", "fc1"])
    model.configure_model()
    matrices = model.backbone.vera
    assert isinstance(matrices, nn.ModuleDict)
    assert set(matrices) == {"48x48", "192x48"}  # q, v and proj are of one shape
    for other in (model, copy.deepcopy(model)):
        for block in other.backbone.blocks:  # type: ignore[union-attr]
            shared: Any = other.backbone.vera
            assert block.attn.qkv.lora.matrices[0] is block.attn.proj.lora.matrices[0] is shared["48x48"]
            assert block.mlp.fc1.lora.matrices[0] is shared["192x48"]


def test_the_seed_alone_determines_the_matrices(build: Build) -> None:
    def draw(first: int, **options: Any) -> dict[str, Tensor]:
        model = build("vera", **options)
        torch.manual_seed(first)
        torch.randn(first)
        model.configure_model()
        return dict(model.backbone.vera.named_buffers())  # type: ignore[union-attr, operator]

    one, same, other = draw(1), draw(7), draw(1, vera_seed=3)
    assert set(one) == {"48x48.A", "48x48.B"}
    for name in one:
        assert torch.equal(one[name], same[name])
        assert not torch.equal(one[name], other[name])
    # the targets beside it change nothing for this shape
    more = draw(1, vera_targets=["fc1", "v"])
    assert all(torch.equal(one[name], more[name]) for name in one)


def test_matrices_are_kaiming_uniform_and_the_same_everywhere() -> None:
    matrices = RandomMatrices(outputs=500, inputs=300, rank=200, seed=0)
    for matrix, fan_in in ((matrices.A, 300), (matrices.B, 200)):
        bound = (6 / fan_in) ** 0.5
        assert float(matrix.abs().max()) == pytest.approx(bound, rel=1e-3)
        assert float(matrix.std()) == pytest.approx(bound / 3**0.5, rel=1e-2)
    # fixed values, because an adapter file holds neither A nor B: other draws would make old files wrong
    small = RandomMatrices(outputs=2, inputs=3, rank=1, seed=0)
    torch.testing.assert_close(small.A, torch.tensor([[-0.010588, 0.758646, -1.163962]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(small.B, torch.tensor([[-1.802675], [-0.943432]]), atol=1e-6, rtol=0)


def test_files_hold_d_and_b_alone(build: Build, tmp_path: Path) -> None:
    model = build("vera")
    model.configure_model()
    names = {f"backbone.blocks.{block}.attn.qkv.lora.{vector}" for block in (0, 1) for vector in "db"}
    assert {name for name in model.delta_state_dict() if "head" not in name} == names
    assert not any(".vera." in name for name in model.state_dict())
    write_adapter(tmp_path, checkpoint_of(model))
    held = load_file(tmp_path / WEIGHTS)
    # two blocks with q and v, each with d (256,) and b (48,), and a classifier of 3 classes, in fp32
    assert sum(tensor.nbytes for tensor in held.values()) == 2 * 2 * (256 + 48) * 4 + 3 * (48 + 1) * 4 == 5_452
    assert (tmp_path / WEIGHTS).stat().st_size < 8_000
    # the rank exceeds every width here; A and B are larger than the file
    assert sum(b.nbytes for _, b in model.backbone.vera.named_buffers()) == 98_304  # type: ignore[union-attr, operator]


def test_merged_weight_is_the_equation(build: Build) -> None:
    model = build("vera", vera_rank=5)
    plain = copy.deepcopy(model.backbone.blocks[1].attn.qkv.weight)  # type: ignore[union-attr, index]
    model.configure_model()
    perturb(model)
    update = model.backbone.blocks[1].attn.qkv.lora  # type: ignore[union-attr, index]
    A, B = model.backbone.vera["48x48"].A, model.backbone.vera["48x48"].B  # type: ignore[index, union-attr]
    (d_q, d_v), (b_q, b_v) = update.d.chunk(2), update.b.chunk(2)
    q, v = (torch.diag(b) @ B @ torch.diag(d) @ A for d, b in ((d_q, b_q), (d_v, b_v)))
    merged = model.merge().blocks[1].attn.qkv.weight  # type: ignore[union-attr, index]
    torch.testing.assert_close(merged, plain + torch.cat([q, torch.zeros(48, 48), v]))


@pytest.mark.parametrize("rank", [16, 256], ids="rank {}".format)  # below and above the width 48
@pytest.mark.parametrize("target", ["attn.qkv", "attn.proj", "mlp.fc2"])
def test_computes_what_peft_computes(target: str, rank: int, build: Build) -> None:
    """Logits and gradients of peft's VeRA with its defaults, for equal A, B, d and b; all layers have one shape."""
    model = build("vera", vera_targets=[target], vera_rank=rank)
    plain = copy.deepcopy(model.backbone)
    model.configure_model()
    ours = {name.rpartition(".lora")[0]: u for name, u in model.backbone.named_modules() if isinstance(u, VeRAUpdate)}
    theirs: Any = peft.get_peft_model(plain, peft.VeraConfig(r=rank, target_modules=[target]))
    layers = {name: theirs.base_model.model.get_submodule(name) for name in ours}
    assert len(layers) == TINY["depth"]
    (matrices,) = model.backbone.vera.values()  # type: ignore[union-attr, operator]
    for name, layer in layers.items():
        d, b = layer.vera_lambda_d["default"], layer.vera_lambda_b["default"]
        assert torch.equal(d, ours[name].d)  # the initial values of peft are ours
        assert torch.equal(b, ours[name].b)
        layer.vera_A["default"].copy_(matrices.A)
        layer.vera_B["default"].copy_(matrices.B)
    perturb(model)
    for name, layer in layers.items():
        layer.vera_lambda_d["default"].data.copy_(ours[name].d)
        layer.vera_lambda_b["default"].data.copy_(ours[name].b)
    theirs.base_model.model.head.load_state_dict(model.backbone.head.state_dict())  # type: ignore[union-attr]

    targets = torch.tensor([0, 2])
    logits, expected = model.eval()(images()), theirs.eval()(images())
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    F.cross_entropy(logits, targets).backward()
    F.cross_entropy(expected, targets).backward()
    for name, layer in layers.items():
        torch.testing.assert_close(ours[name].d.grad, layer.vera_lambda_d["default"].grad, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(ours[name].b.grad, layer.vera_lambda_b["default"].grad, atol=1e-6, rtol=1e-4)


def test_gradients_of_the_first_steps(build: Build) -> None:
    """At step 0 b alone moves, because it is 0; from then on d moves too."""
    model = build("vera")
    model.configure_model()
    for step in range(2):
        model.zero_grad()
        F.cross_entropy(model(images()), torch.tensor([0, 1])).backward()
        for update in updates(model):
            assert update.d.grad is not None
            assert update.b.grad is not None
            assert bool(update.b.grad.abs().max() > 0)
            assert bool(update.d.grad.abs().max() > 0) == (step == 1)
            update.b.data -= update.b.grad


def test_bf16(build: Build) -> None:
    """Under autocast the output is near that of fp32; A and B in bf16 leave d, b and the factors in fp32."""
    model = build("vera")
    model.configure_model()
    perturb(model)
    with torch.no_grad():
        expected = model.eval()(images())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(images())
    torch.testing.assert_close(mixed.float(), expected, atol=0.05, rtol=0.05)
    for matrices in model.backbone.vera.values():  # type: ignore[union-attr, operator]
        matrices.bfloat16()
    for update in updates(model):
        assert all(factor.dtype is torch.float32 for factor in update.factors())
        assert update.d.dtype is update.b.dtype is torch.float32


def test_dropout_is_off_in_eval_mode_and_on_in_training(build: Build) -> None:
    model = build("vera", vera_dropout=0.5)
    model.configure_model()
    perturb(model)
    with torch.no_grad():
        assert not torch.equal(model.train()(images()), model(images()))
        torch.testing.assert_close(model.merge()(images()), model.eval()(images()), atol=1e-5, rtol=0)


def test_every_width_of_a_swin() -> None:
    arguments = {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 4)}
    options: dict[str, Any] = {"backbone_args": arguments, "pretrained": False, "num_classes": 3}
    model = composed("vera")(backbone="swin_tiny_patch4_window7_224", **options)
    model.configure_model()
    perturb(model)
    assert set(model.backbone.vera) == {"24x24", "48x48"}  # type: ignore[arg-type]
    assert model.parameter_counts()["method"] == 2 * (256 + 24) + 2 * (256 + 48)
    with torch.no_grad():
        torch.testing.assert_close(model.merge()(images()), model.eval()(images()), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vera_rank": 0}, "^vera_rank=0: expected a positive rank$"),
        ({"vera_d_init": 0.0}, r"^vera_d_init=0\.0: expected a finite number other than 0, such as 0\.1; at 0 nothing"),
        ({"vera_d_init": float("nan")}, "^vera_d_init=nan: expected a finite number"),
        ({"vera_dropout": 1.0}, r"^vera_dropout=1\.0: expected a probability of at least 0 and below 1$"),
        ({"vera_seed": -1}, "^vera_seed=-1: expected a seed of at least 0$"),
        ({"vera_targets": []}, "^vera_targets is empty: expected names such as q, v, proj, fc1, or leave it out$"),
        (
            {"vera_targets": ["atn.proj"]},
            r"^vera_targets: no linear layer's or convolution's name ends with 'atn\.proj'; near: attn\.proj",
        ),
        ({"vera_targets": ["head"]}, "^vera_targets: no linear layer's or convolution's name ends with 'head'"),
        ({"vera_targets": ["qkv", "v"]}, r"^vera_targets: v covers rows of blocks\.0\.attn\.qkv twice"),
    ],
    ids=str,
)
def test_refusals(options: dict[str, Any], message: str, build: Build) -> None:
    with pytest.raises(ValueError, match=message):
        build("vera", **options).configure_model()


def test_refuses_a_second_update() -> None:
    model = composed("lora+vera")(backbone=BACKBONE, backbone_args=TINY, pretrained=False, num_classes=3)
    with pytest.raises(ValueError, match="has a child 'lora' already"):
        model.configure_model()
