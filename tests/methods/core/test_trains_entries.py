"""Methods that train single entries."""

from collections.abc import Callable
from typing import Any

import torch

from methods import PEFTMethod
from methods.core.trains_entries import TrainsEntries
from tests.support import made_up

Build = Callable[..., PEFTMethod]


def adapted(build: Build, **options: Any) -> Any:
    model: Any = build("sara", sara_scope="all", **options)
    model.selection = model.select(made_up.normal(model))
    model.configure_model()
    return model


def test_targets_are_all_but_the_head(build: Build) -> None:
    model: Any = build("sara", sara_scope="all")
    assert isinstance(model, TrainsEntries)
    names = {name for name, _ in model.backbone.named_parameters()}
    assert set(model.score_targets()) == names - {"head.weight", "head.bias"}


def test_entries_of_matrices_decay(build: Build) -> None:
    model = adapted(build, weight_decay=0.3)
    groups = {id(p): group for group in model.param_groups() for p in group["params"]}
    kinds = {entries.of_matrix for entries in model.entries()}
    assert kinds == {True, False}
    for entries in model.entries():
        group = groups[id(entries.values)]
        assert group["weight_decay"] == (0.3 if entries.of_matrix else 0.0)
        assert group["lr"] == model.entries_lr


def test_decay_of_entries_by_other_rules(build: Build) -> None:
    rules = {"all": lambda name: True, "all_but_bias": lambda name: "bias" not in name}
    rules["all_but_norm_and_bias"] = lambda name: "bias" not in name and "norm" not in name
    for rule, decays in rules.items():
        model = adapted(build, weight_decay=0.3, decayed=rule)
        decayed = {id(p) for group in model.param_groups() if group["weight_decay"] for p in group["params"]}
        entries = {name: p for name, p in model.named_parameters() if name.endswith("_entries.values")}
        assert {name for name, p in entries.items() if id(p) in decayed} == set(filter(decays, entries)), rule


def test_merge_writes_the_values_into_their_places(build: Build) -> None:
    model = adapted(build)
    with torch.no_grad():
        for entries in model.entries():
            entries.values += 1
    merged = model.merge()
    name, indices = next((name, indices) for name, indices in model.chosen().items() if len(indices))
    plain = dict(model.backbone.named_parameters())[name]
    change = (merged.get_parameter(name) - plain).flatten()
    torch.testing.assert_close(change[indices.long()], torch.ones(len(indices)))
    assert int((change != 0).sum()) == len(indices)
