"""FacT."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.classification import Classification
from methods import METHODS, PEFTMethod, compose
from methods.fact import FacTUpdate
from tests.methods.test_lora import Part, check_frozen
from tests.support.golden import Golden, head_parameters

COUNTS = {"vit_base_patch16_224": 61_440}
IDENTITY: dict[str, Any] | None = {}
Build = Callable[..., PEFTMethod]


class Core(Part):
    """Cores (n, r, r) that the fixture holds side by side and transposed, as the weight of one linear layer."""

    def __init__(self, parameter: Tensor, index: Any, shape: torch.Size) -> None:
        super().__init__(parameter, index)
        self.rows_first = shape[0] >= shape[1]

    def set(self, value: Tensor) -> None:
        rank = min(value.shape)
        cores = value.view(-1, rank, rank) if self.rows_first else value.view(rank, -1, rank).transpose(0, 1)
        super().set(cores.transpose(1, 2))

    @property
    def grad(self) -> Tensor | None:
        grad = Part.grad.fget(self)  # type: ignore[attr-defined]
        if grad is None:
            return None
        weights = grad.transpose(1, 2)
        return (weights if self.rows_first else weights.transpose(0, 1)).reshape(-1)


def check_fact(golden: Golden) -> None:
    check_frozen(golden)
    values = golden.part("peft")
    form = "tk" if "FacTc" in values else "tt"
    rank = values["FacTu.weight"].shape[0]
    model = golden.build("fact", fact_form=form, fact_rank=rank, fact_scale=golden.config["method"]["scale"])
    fact = model.backbone.fact
    shared = {"FacTu.weight": "U", "FacTv.weight": "V", "FacTc": "C", "FacTp": "P"}
    first = {"q": 0, "k": 1, "v": 2, "proj": 3, "fc1": 4, "fc2": 8}
    ours: dict[str, Any] = {}
    for name, value in values.items():
        if name in shared:
            ours[name] = getattr(fact, shared[name])
            ours[name].data.copy_(value)
        else:
            _, block, _, kind, _ = name.split(".")
            start = first[kind.removesuffix("_FacTs")]
            count = value.numel() // rank**2
            ours[name] = Core(fact.M, (int(block), slice(start, start + count)), value.shape)
            ours[name].set(value)
    assert sum(p.numel() for p in fact.parameters()) == sum(value.numel() for value in values.values())
    golden.check_logits(model)
    golden.check_gradients(model, ours | head_parameters(model))
    golden.check_merge(model)


GOLDEN = {"fact_tt": check_fact, "fact_tk": check_fact}


@pytest.mark.parametrize(
    ("form", "rank", "count"),
    [("tt", 4, 8_448), ("tt", 8, 21_504), ("tt", 16, 61_440), ("tk", 16, 30_976), ("tk", 32, 86_528)],
)
@pytest.mark.usefixtures("on_meta")
def test_counts(form: str, rank: int, count: int) -> None:
    model = compose(METHODS["fact"], task=Classification)(
        backbone="vit_base_patch16_224", pretrained=False, num_classes=100, fact_form=form, fact_rank=rank
    )
    model.configure_model()
    assert model.parameter_counts()["method"] == count


@pytest.mark.parametrize("form", ["tt", "tk"])
def test_shared_factors_are_saved_once_and_copied_together(form: str, build: Build) -> None:
    model = build("fact", fact_form=form)
    model.configure_model()
    names = {name for name in model.delta_state_dict() if "head" not in name}
    assert names == {f"backbone.fact.{name}" for name in ("U", "V", *(("M",) if form == "tt" else ("C", "P")))}
    other = copy.deepcopy(model)
    updates = [module for module in other.modules() if isinstance(module, FacTUpdate)]
    assert len(updates) == 8
    assert all(update.shared[0] is other.backbone.fact for update in updates)


@pytest.mark.parametrize("form", ["tt", "tk"])
def test_dropout_is_off_in_eval_mode_and_on_in_training(form: str, build: Build) -> None:
    model = build("fact", fact_form=form, fact_dropout=0.5)
    model.configure_model()
    nn.init.normal_(model.backbone.fact.V)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert not torch.equal(model.train()(images), model(images))
        torch.testing.assert_close(model.merge()(images), model.eval()(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fact_rank": 0}, "fact_rank=0: expected a positive rank"),
        ({"fact_rank": 49}, "fact_rank=49: expected 1 to 48, the width of the backbone"),
        ({"fact_scale": 0.0}, r"fact_scale=0\.0: expected a positive number"),
        ({"fact_dropout": -0.1}, r"fact_dropout=-0\.1: expected a probability"),
    ],
    ids=str,
)
def test_refusals(options: dict[str, Any], message: str, build: Build) -> None:
    with pytest.raises(ValueError, match=message):
        build("fact", **options).configure_model()


@pytest.mark.parametrize(
    ("backbone", "arguments"),
    [
        ("swin_tiny_patch4_window7_224", {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (1, 1)}),
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 1, "mlp_ratio": 3}),
        ("eva02_tiny_patch14_224", {"img_size": 28, "depth": 1, "embed_dim": 48, "num_heads": 3}),
        ("mixer_s32_224", {"img_size": 64}),
        ("resnet10t", {}),
    ],
)
def test_refuses_other_shapes(backbone: str, arguments: dict[str, Any]) -> None:
    if "swin" in backbone:
        arguments = arguments | {"num_heads": (2, 4)}
    model = compose(METHODS["fact"], task=Classification)(
        backbone=backbone, backbone_args=arguments, pretrained=False, num_classes=3
    )
    with pytest.raises(ValueError, match="FacT needs blocks of one width D"):
        model.configure_model()
