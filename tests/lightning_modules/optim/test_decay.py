"""Parameters with weight decay: the rules against those of the published codes, on the names of a ViT-B."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from lightning_modules.optim.decay import Decayed, decay_groups, decays, in_norm


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    with torch.device("meta"):
        return timm.create_model("vit_base_patch16_224", num_classes=10)


def decayed(rule: Decayed, model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if decays(rule, name, p, model, name.startswith("head."))}


def of_timm(model: nn.Module) -> set[str]:
    """Its ViT spares the positions too, by a list of names; a class token has three dimensions there."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = param_groups_weight_decay(model, 0.1, no_weight_decay_list=("cls_token",))
    return {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}


def of_vpt_adamw(model: nn.Module) -> set[str]:
    """src/solver/optimizer.py l.36: no name of timm's ViT has "LayerNorm", so weights of norms decay."""
    return {n for n, _ in model.named_parameters() if not any(s in n for s in ("bias", "LayerNorm.weight"))}


def of_vpt_sgd(model: nn.Module) -> set[str]:
    """src/solver/optimizer.py l.65: all but ``last_layer.bias``, the bias of the classifier."""
    return {name for name, _ in model.named_parameters()} - {"head.bias"}


def of_hugging_face(model: nn.Module) -> set[str]:
    norms = {n for n, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    return {n for n, _ in model.named_parameters() if n.rpartition(".")[0] not in norms and "bias" not in n}


@pytest.mark.parametrize(
    ("rule", "source", "count"),
    [
        ("matrices", of_timm, 4 * 12 + 3),  # 4 linear layers of a block; patch embedding, positions, head
        ("all", lambda model: {name for name, _ in model.named_parameters()}, 12 * 12 + 8),
        ("all_but_bias", of_vpt_adamw, (4 + 2) * 12 + 5),  # and norms, the class token, the final norm
        ("all_but_norm_and_bias", of_hugging_face, 4 * 12 + 4),  # and the class token
        ("all_but_head_bias", of_vpt_sgd, 12 * 12 + 7),
    ],
)
def test_names_of_a_vit(rule: Any, source: Callable[[nn.Module], set[str]], count: int, vit: nn.Module) -> None:
    found = decayed(rule, vit)
    assert found == source(vit)
    assert len(found) == count


def test_a_matrix_with_one_row_is_a_vector() -> None:
    """A single prompt (1, C) has no decay by shape, but has it in VPT's code."""
    model = nn.ParameterDict({"prompt": torch.ones(1, 4), "prompts": torch.ones(2, 4)})
    assert decayed("matrices", model) == {"prompts"}
    assert decayed("all_but_head_bias", model) == {"prompt", "prompts"}


def test_parameters_in_norms() -> None:
    model = nn.ModuleDict({"norm1": nn.LayerNorm(4), "down": nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))})
    model["norm1"].add_module("scale", nn.Linear(4, 4))
    found = {name for name, _ in model.named_parameters() if in_norm(name, model)}
    assert found == {f"norm1{part}.{kind}" for part in ("", ".scale") for kind in ("weight", "bias")} | {
        "down.0.weight",
        "down.0.bias",
    }


def test_groups() -> None:
    """In the order of the parameters; a group without parameters is left out."""
    parameters = {name: nn.Parameter(torch.ones(2)) for name in "abc"}
    groups = decay_groups(parameters, 0.5, lambda name, parameter: name != "b")
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    assert [[id(p) for p in group["params"]] for group in groups] == [
        [id(parameters[n]) for n in g] for g in ("ac", "b")
    ]
    assert len(decay_groups(parameters, 0.5, lambda name, parameter: False)) == 1
