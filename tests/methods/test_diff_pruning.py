"""Diff pruning."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from methods.diff_pruning import Diff, GatedDifference, SumOfSigmoids, hard_concrete
from tests.conftest import random_tiny

COUNTS = {"vit_small_patch16_224": 43_331_328}
IDENTITY: dict[str, Any] | None = {}


def test_gates_are_hard_concrete() -> None:
    """Share of shut and open gates against the distribution's: P(s < c) = sigmoid(logit c - alpha)."""
    torch.manual_seed(0)
    for alpha, stretch in ((0.0, 1.5), (1.0, 1.5), (0.5, 3.0)):
        gates = Diff(torch.zeros(20_000), alpha, stretch).gates()
        cut = torch.tensor([0.5, 0.5 + 0.5 / stretch])  # where the stretched sigmoid is 0 and 1
        shut, below_one = (cut.logit() - alpha).sigmoid().tolist()
        assert (gates == 0).float().mean() == pytest.approx(shut, abs=0.02)
        assert (gates == 1).float().mean() == pytest.approx(1 - below_one, abs=0.02)
        assert 0 <= gates.min() <= gates.max() <= 1


def test_functions_against_autograd() -> None:
    draw = torch.Generator().manual_seed(0)
    difference, alpha, noise = (torch.randn(40, generator=draw, dtype=torch.float64) for _ in range(3))
    inputs = [difference.view(5, 8).requires_grad_(), alpha.requires_grad_()]
    found = GatedDifference.apply(*inputs, noise, 1.5, torch.float64)
    expected = hard_concrete(alpha + noise, 1.5).view(5, 8) * inputs[0]
    torch.testing.assert_close(found, expected)
    pairs = [(found.square().sum(), expected.square().sum()), (SumOfSigmoids.apply(alpha), alpha.sigmoid().sum())]
    for one, other in pairs:
        gradients = [torch.autograd.grad(y, inputs, allow_unused=True, materialize_grads=True) for y in (one, other)]
        torch.testing.assert_close(*gradients)


def test_gates_are_kept_in_the_dtype_of_the_weight() -> None:
    diff, kept = Diff(torch.zeros(4, 4), 1.0, 1.5), list[torch.dtype]()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.dtype) or t, lambda t: t):
        diff(torch.zeros(4, 4, dtype=torch.bfloat16))
    assert kept == [torch.float32, torch.bfloat16]  # the first one is a parameter


def test_the_penalty_is_the_expected_number_of_open_gates(build: Any) -> None:
    model = build("diff_pruning", diff_l0_weight=0.5, diff_alpha_init=2.0)
    model.configure_model()
    count = sum(diff.alpha.numel() for diff in model.diffs())
    expected = 0.5 * count * torch.tensor(2.0).sigmoid().item()
    assert float(model.l0_loss().detach()) == pytest.approx(expected, rel=1e-4)


def test_only_a_share_differs_in_the_end(build: Any, data: Any, trainer: Any) -> None:
    """Under weight decay and momentum, and pruning happens once."""
    model = build("diff_pruning", diff_fraction=0.02, weight_decay=0.5, lr=0.01)
    before = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}
    trainer().fit(model, datamodule=data())
    assert model.pruning == 3
    merged = model.merge()
    for name, old in before.items():
        if not name.startswith("head"):
            different = int((merged.get_parameter(name) != old).sum())
            kept = int(0.02 * old.numel())
            assert different <= kept, name
            assert different >= 0.9 * kept - 1, name
    gates = [diff.train().gates() for diff in model.diffs()]
    assert all(((gate == 0) | (gate == 1)).all() for gate in gates)


def test_training_on_does_not_prune_again(build: Any, data: Any, trainer: Any, tmp_path: Path) -> None:
    """The share of a longer training is reached after that of the shorter one: the gates stay."""
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    first = build("diff_pruning", diff_fraction=0.05)
    trainer(max_epochs=2, limit_train_batches=2, enable_checkpointing=True, callbacks=[keep]).fit(
        first, datamodule=data()
    )
    gates = [diff.eval().gates().clone() for diff in first.diffs()]
    second = build("diff_pruning", diff_fraction=0.05)
    again = ModelCheckpoint(tmp_path / "again")
    run = trainer(max_epochs=6, limit_train_batches=2, enable_checkpointing=True, callbacks=[again])
    run.fit(second, datamodule=data(), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert second.pruning == 6
    assert all(torch.equal(diff.eval().gates(), gate) for diff, gate in zip(second.diffs(), gates, strict=True))


def test_gates_have_a_learning_rate_of_their_own(build: Any) -> None:
    model = build("diff_pruning", weight_decay=0.1, lr=1e-3)
    model.configure_model()
    last = model.param_groups()[-1]
    assert (last["lr"], last["weight_decay"]) == (0.1, 0.0)
    assert {id(p) for p in last["params"]} == {id(diff.alpha) for diff in model.diffs()}


@pytest.mark.parametrize(
    "options",
    [{"diff_fraction": 0.0}, {"diff_burn_in": 1.0}, {"diff_stretch": 1.0}, {"diff_l0_weight": -1.0}],
)
def test_bad_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.*expected"):
        random_tiny("diff_pruning", **options)
