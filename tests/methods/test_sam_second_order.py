"""Second-order selection."""

from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from callbacks.scoring.score_before_fit import ScoreBeforeFit
from callbacks.scoring.scorers import Curvature
from tests.conftest import random_tiny
from tests.methods.test_sara import entries_of
from tests.support import made_up
from tests.support.batches import as_batch
from tests.support.golden import Golden, head_parameters

COUNTS = {"vit_base_patch16_224": 428_901}
IDENTITY: dict[str, Any] | None = {}
scores = made_up.normal


def check_second_order(golden: Golden) -> None:
    fraction, batches, lr, clip, _, _, after = golden.tensors["meta"].tolist()
    inputs, labels = golden.tensors["inputs"], golden.tensors["labels"].long()
    burn_in = int(batches) - 1

    def build(criterion: str) -> tuple[Any, dict[str, Tensor]]:
        model: Any = golden.build(
            "sam_second_order", sam_fraction=fraction, sam_clip=clip, sam_criterion=criterion, sam_batches=burn_in
        )
        with model.build_scorer() as scorer:
            for batch in map(as_batch, inputs[:burn_in], labels[:burn_in]):
                if scorer.needs_data:
                    scorer.backward(model.score_loss(batch))
        model.selection = model.select(scorer.sums)
        return model, scorer.sums

    criteria = {"mask_fisher": "grad_sq", "mask_abs": "grad_abs", "mask_mag": "magnitude", "mask": "grad_sum"}
    for part, criterion in criteria.items():
        model, sums = build(criterion)
        for name, mask in golden.part(part).items():
            assert torch.equal(model.chosen()[name].long(), mask.flatten().nonzero().flatten()), (criterion, name)
    for name, total in golden.part("accu").items():
        torch.testing.assert_close(sums[name], total, atol=2e-5, rtol=0, msg=name)

    model.configure_model()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=lr)
    for images, classes in zip(inputs[burn_in:], labels[burn_in:], strict=True):
        # the original clips by the gradient of all parameters, of which ours knows what trains
        dense = model.merge().requires_grad_(True)
        F.cross_entropy(dense(images), classes).backward()
        norm = nn.utils.clip_grad_norm_(dense.parameters(), clip)
        optimizer.zero_grad()
        F.cross_entropy(model(images), classes).backward()
        for parameter in trained:
            assert parameter.grad is not None
            parameter.grad.mul_((clip / (norm + 1e-6)).clamp(max=1))
        optimizer.step()
    assert len(inputs) - burn_in == after + 1
    merged = model.merge().state_dict()
    for name, final in golden.part("final").items():
        torch.testing.assert_close(merged[name], final, atol=1e-6, rtol=0, msg=name)
    assert head_parameters(model)


GOLDEN = {"sam_second_order": check_second_order}


@pytest.mark.parametrize(("fraction", "count"), [(0.001, 85_712), (0.01, 857_890), (0.1, 8_579_775)])
def test_counts_per_tensor(fraction: float, count: int) -> None:
    """Of ViT-B/16: a share of each of its tensors, those of 768 entries and p = 0.001 get nothing."""
    width, blocks = 768, 12
    sizes = [width, 197 * width, width * 768, width, width, width]
    block = [width, width, 3 * width * width, 3 * width, width * width, width, width, width]
    sizes += blocks * [*block, 4 * width * width, 4 * width, 4 * width * width, width]
    assert sum(sizes) == 85_798_656
    assert sum(int(fraction * size) for size in sizes) == count


@pytest.mark.parametrize("scope", ["per_tensor", "global"])
def test_counts_of_a_choice(scope: str, build: Any) -> None:
    model = build("sam_second_order", sam_fraction=0.02, sam_scope=scope)
    made = scores(model)
    chosen = model.select(made)
    sizes = [score.numel() for score in made.values()]
    expected = sum(int(0.02 * n) for n in sizes) if scope == "per_tensor" else int(0.02 * sum(sizes))
    assert sum(map(len, chosen.values())) == expected
    assert all((indices.diff() > 0).all() for indices in chosen.values())


def test_random_draws_from_the_seed(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every entry with probability p; the same for a seed, another for another."""
    chosen = []
    for seed in ("0", "0", "1"):
        model = build("sam_second_order", sam_criterion="random", sam_fraction=0.1)
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        with model.build_scorer() as scorer:
            chosen.append(model.select(scorer.sums))
    total = sum(p.numel() for n, p in model.backbone.named_parameters() if not n.startswith("head"))
    assert sum(map(len, chosen[0].values())) == pytest.approx(0.1 * total, rel=0.05)
    assert all(torch.equal(chosen[0][name], chosen[1][name]) for name in chosen[0])
    assert not all(torch.equal(chosen[0][name], chosen[2][name]) for name in chosen[0])


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_data_free_criteria_read_no_data(criterion: str, build: Any, data: Any, trainer: Any) -> None:
    scoring = ScoreBeforeFit()
    model = build("sam_second_order", sam_criterion=criterion)
    trainer(callbacks=[scoring], max_steps=2).fit(model, datamodule=data())
    assert scoring.passes == 0
    assert any(map(len, model.chosen().values()))


class Quadratic(nn.Module):
    """``(t - c)^T diag(h) (t - c) / 2``."""

    def __init__(self, h: Tensor, c: Tensor) -> None:
        super().__init__()
        self.t, self.h, self.c = nn.Parameter(torch.zeros(len(h))), h, c

    def forward(self) -> Tensor:
        return 0.5 * (self.h * (self.t - self.c).square()).sum()


def curved(build: Any, model: Quadratic, **options: Any) -> tuple[Any, dict[str, Tensor]]:
    """The method with a quadratic loss in place of the backbone's, and its scores."""
    method = build("sam_second_order", sam_criterion="grad_sq_over_hess", sam_clip=None, **options)
    method.score_targets = lambda: ["t"]
    with Curvature(model, ["t"], None, probes=1) as scorer:
        scorer.backward(model())
    return method, scorer.sums


def test_hutchinson_is_exact_on_a_diagonal(build: Any) -> None:
    h, c = torch.rand(8) + 0.2, torch.randn(8)
    _, sums = curved(build, Quadratic(h, c))
    torch.testing.assert_close(sums["hessian/t"] / sums["count"], h)
    torch.testing.assert_close(sums["t"], -h * c)


def test_the_choice_minimises_a_quadratic(build: Any) -> None:
    """With the theorem's exponent, against every mask of the size."""
    torch.manual_seed(2)
    for _ in range(5):
        h, c = 3 * torch.rand(8) + 0.2, torch.randn(8)
        model = Quadratic(h, c)
        method, sums = curved(build, model, sam_fraction=0.4, sam_hessian_power=1.0)
        chosen = tuple(method.select(sums)["t"].tolist())
        assert len(chosen) == 3
        gain = h * c.square() / 2  # of one coordinate at its optimum
        best = max(combinations(range(8), 3), key=lambda mask: float(gain[list(mask)].sum()))
        assert chosen == best


def test_constant_curvature_is_the_squared_gradient(build: Any) -> None:
    c = torch.randn(20)
    method, sums = curved(build, Quadratic(torch.full((20,), 0.7), c), sam_fraction=0.3, sam_hessian_power=1.0)
    assert method.select(sums)["t"].tolist() == sorted(c.abs().topk(6).indices.tolist())


def test_curvature_of_a_backbone(build: Any, data: Any, trainer: Any) -> None:
    model = build("sam_second_order", sam_criterion="grad_sq_over_hess", sam_batches=2, sam_probes=2)
    scoring = ScoreBeforeFit()
    trainer(callbacks=[scoring], max_steps=1).fit(model, datamodule=data())
    assert scoring.passes == 1
    assert sum(map(len, model.chosen().values())) > 100


def test_clipping_counts_every_batch_alike(build: Any) -> None:
    model = build("sam_second_order", sam_clip=1e-3)
    images = torch.randn(4, 3, 32, 32)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with model.eval().build_scorer() as scorer:
        for scale in (1.0, 100.0):
            scorer.backward(scale * model.score_loss(as_batch(images, torch.tensor([0, 1, 2, 0]))))
    sums = torch.cat([total.flatten() for total in scorer.sums.values()])
    assert 0 < sums.norm() <= 2e-3  # the norm of all is 2e-3, that of the classifier is not in it
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("criterion", ["grad_sum", "magnitude", "random"])
def test_unchosen_entries_stay(criterion: str, build: Any, data: Any, trainer: Any) -> None:
    """Bit for bit, under weight decay, momentum and clipping."""
    options = {"sam_fraction": 0.05, "weight_decay": 0.5, "optimizer": "adamw", "lr": 0.1}
    model = build("sam_second_order", sam_criterion=criterion, **options)
    before = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}
    trainer(gradient_clip_val=1.0).fit(model, datamodule=data())
    merged = model.merge()
    for name, indices in model.chosen().items():
        after, rest = merged.get_parameter(name).flatten(), torch.ones(before[name].numel(), dtype=torch.bool)
        rest[indices.long()] = False
        assert torch.equal(after[rest], before[name].flatten()[rest]), name
        assert (after[~rest] != before[name].flatten()[~rest]).float().mean() > 0.99 or not len(indices)


def test_entries_of_matrices_decay(build: Any) -> None:
    model = build("sam_second_order", sam_fraction=0.05, weight_decay=0.3)
    model.selection = model.select(scores(model))
    model.configure_model()
    decay = {id(p): group["weight_decay"] for group in model.param_groups() for p in group["params"]}
    assert decay[id(entries_of(model, "blocks.0.attn.qkv.weight").values)] == 0.3
    assert decay[id(entries_of(model, "blocks.0.attn.qkv.bias").values)] == 0.0
    assert decay[id(entries_of(model, "cls_token").values)] == 0.0


@pytest.mark.parametrize(
    "options",
    [{"sam_fraction": 0.0}, {"sam_fraction": 1.0}, {"sam_batches": 0}, {"sam_probes": 0}, {"sam_clip": 0.0}],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.*expected"):
        random_tiny("sam_second_order", **options)


def test_a_share_that_selects_nothing_is_refused(build: Any) -> None:
    model = build("sam_second_order", sam_fraction=1e-7)
    with pytest.raises(ValueError, match="sam_fraction=1e-07 selects nothing"):
        model.select(scores(model))
