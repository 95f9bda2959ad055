"""Exponents and optimizer groups of width parameterizations against the spec's tables."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from methods.layers.exponents import PARAMETERIZATIONS, build_param_groups, exponents
from methods.width_scaling import rescale


@pytest.fixture
def golden(pytestconfig: pytest.Config) -> dict[str, Any]:
    path = Path(pytestconfig.getoption("--golden-dir")) / "scaling_exponents.json"
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_golden_table(golden: dict[str, Any]) -> None:
    assert set(golden["parameterizations"]) == set(PARAMETERIZATIONS)
    for name, table in golden["parameterizations"].items():
        for layer in golden["layers"]:
            assert PARAMETERIZATIONS[name][layer] == (table["a"][layer], table["b"][layer])


def test_golden_exponents(golden: dict[str, Any]) -> None:
    assert len(golden["exponents"]) == 48
    for row in golden["exponents"]:
        found = exponents(row["parameterization"], row["optimizer"], row["alignment"], row["omega_readout"])
        assert {layer: e.c for layer, e in found.items()} == row["c"], row
        assert {layer: e.g for layer, e in found.items()} == row["g"], row


class ThreeLayers(nn.Module):
    """One layer of each kind."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(12, width, bias=False)
        self.hidden = nn.Linear(width, width, bias=False)
        self.readout = nn.Linear(width, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(F.relu(self.hidden(F.relu(self.embedding(x)))))


def draw(width: int, std: float = 0.3) -> ThreeLayers:
    model = ThreeLayers(width)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std)
    return model


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def test_golden_groups(golden: dict[str, Any]) -> None:
    """Multiplier, initial std, learning rate and epsilon of every layer, through the builder."""
    for width in sorted({row["width"] for row in golden["groups"]}):
        rows = [row for row in golden["groups"] if row["width"] == width]
        for parameterization in PARAMETERIZATIONS:
            base, model = ThreeLayers(rows[0]["base_width"]), ThreeLayers(width)
            for layer in (*base.children(), *model.children()):
                weight: Any = layer.weight
                nn.init.constant_(weight, rows[0]["std0"])
                weight.data.view(-1)[::2] *= -1  # a std that is exact but for the sample's n - 1
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            rescale(model, base, parameterization)
            for row in [row for row in rows if row["parameterization"] == parameterization]:
                groups = build_param_groups(
                    model,
                    shapes(base),
                    parameterization,
                    row["optimizer"],
                    row["alignment"],
                    lr=row["lr0"],
                    eps=row["eps0"],
                    eps_mode="per_layer",
                )
                layer = model.get_submodule(row["layer"])
                (group,) = [group for group in groups if any(p is layer.weight for p in group["params"])]
                assert group["lr"] == pytest.approx(row["lr"], rel=1e-12), row
                if row["optimizer"] == "adam":
                    assert group["eps"] == pytest.approx(row["eps"], rel=1e-12), row
                op: Any = layer._modules.get("multiplier")
                assert (op.value if op else 1.0) == pytest.approx(row["multiplier"], rel=1e-12), row
                factor = float((layer.weight.detach() / before[f"{row['layer']}.weight"]).mean())
                assert factor == pytest.approx(row["init_std"] / row["std0"], rel=1e-6), row


def test_constants_overrides_and_independent_decay() -> None:
    groups = build_param_groups(
        draw(128),
        shapes(draw(64)),
        "standard",
        "adamw",
        lr=1.0,
        weight_decay=0.1,
        wd_mode="independent",
        constants={"hidden": 3.0},
        layer_types={r"^readout\.": "constant"},
    )
    found = {group["layer_type"]: (group["lr"], group["weight_decay"]) for group in groups}
    assert found == {"embedding": (1.0, 0.1), "hidden": (1.5, 0.2), "constant": (1.0, 0.1)}


def test_decay_of_chosen_parameters() -> None:
    model = draw(128)
    for decayed in ("embedding", "readout"):
        groups = build_param_groups(
            model,
            shapes(draw(64)),
            "standard",
            "adamw",
            lr=1.0,
            weight_decay=0.1,
            decayed=lambda name, parameter, layer=decayed: name.startswith(layer),
        )
        decays = {group["layer_type"] for group in groups if group["weight_decay"]}
        assert decays == {decayed}


def test_schedulers_keep_the_ratios() -> None:
    groups = build_param_groups(draw(256), shapes(draw(64)), "standard", "sgd", lr=0.1)
    rates = [group["lr"] for group in groups]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    half = LambdaLR(optimizer, lambda step: 0.5)
    assert half.get_last_lr() == [0.5 * rate for rate in rates]
    one_cycle = OneCycleLR(optimizer, max_lr=rates, total_steps=10)
    for _ in range(4):
        optimizer.step()
        one_cycle.step()
        assert [lr / rate for lr, rate in zip(one_cycle.get_last_lr(), rates, strict=True)] == pytest.approx(
            [one_cycle.get_last_lr()[0] / rates[0]] * 3
        )


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (("spectral", "adam", "full"), "parameterization='spectral': there are no exponents .* with 'adam'"),
        (("mup", "muon", "full"), "optimizer='muon': there are no exponents for 'mup' .* expected one of sgd"),
        (("mup", "adam", "half"), "alignment='half'"),
        (("mup", "adam", "full", 0.2), r"omega=0\.2"),
    ],
)
def test_unknown_pairs(args: tuple[Any, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        exponents(*args)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"constants": {"head": 1.0}}, "no kind of layer: head"),
        ({"layer_types": {"x": "wide"}}, "no kind of layer: wide"),
        ({"wd_mode": "independent"}, "optimizer=sgd: independent weight decay needs one of adamw"),
    ],
)
def test_refused_by_the_builder(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        build_param_groups(draw(8), shapes(draw(4)), "standard", "sgd", lr=1.0, **options)
