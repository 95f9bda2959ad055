"""SaRA."""

from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn import functional as F

from callbacks.scoring.score_before_fit import ScoreBeforeFit
from lightning_modules.classification import Classification
from methods import METHODS, compose
from tests.conftest import random_tiny
from tests.support import made_up
from tests.support.golden import Golden

COUNTS = {"vit_base_patch16_224": 855_244, "vit_small_patch16_224": 215_285}
IDENTITY: dict[str, Any] | None = {}
scores = made_up.ascending


def magnitudes(model: Any) -> dict[str, Tensor]:
    with model.build_scorer() as scorer:
        return dict(scorer.sums)


def adapted(model: Any) -> Any:
    model.selection = model.select(magnitudes(model))
    model.configure_model()
    return model


def entries_of(model: Any, name: str) -> Any:
    path, _, kind = name.rpartition(".")
    return model.backbone.get_submodule(path)._modules[f"{kind}_entries"]


def check_sara(golden: Golden) -> None:
    theta, lr, weight_decay, beta1, beta2, eps, steps, progressive, weight = golden.tensors["meta"].tolist()[:9]
    rank_name, masks = golden.metadata["rank_name"], golden.part("mask0")
    assert masks.keys() == golden.part("final").keys()

    def build() -> Any:
        options = {"sara_threshold": theta, "sara_scope": "all", "sara_lr_rule": True, "sara_rank_weight": weight}
        model: Any = golden.build("sara", lr=1e-3, **options)
        type(model).heads = lambda self: {}  # the classifier takes part in the choice here
        return adapted(model)

    def penalty(model: Any) -> Tensor:
        parameter = dict(model.backbone.named_parameters())[rank_name]
        return model.sara_rank_weight * model.nuclear_norm(entries_of(model, rank_name), parameter)

    def train(model: Any, penalized: bool) -> tuple[Tensor, dict[str, Tensor]]:
        model.reselection = int(progressive)
        trained = [entries.values for entries in model.entries()]
        optimizer = torch.optim.AdamW(trained, lr, (beta1, beta2), eps, weight_decay)
        losses, middle = [], {}

        def closure() -> Tensor:
            loss = F.cross_entropy(model(golden.tensors["input"]), golden.tensors["label"].long())
            losses.append(loss.detach())
            loss = loss + penalty(model) if penalized else loss
            optimizer.zero_grad()
            loss.backward()
            model.on_before_optimizer_step(optimizer)
            return loss

        for step in range(int(steps)):
            type(model).global_step = step
            if step == progressive:
                middle = {name: entries_of(model, name).values.detach().clone() for name in masks}
            model.on_train_batch_start(None, 0)
            model.optimizer_step(0, 0, optimizer, closure)
        return torch.stack(losses), middle

    def check(found: Tensor, expected: Tensor, tolerance: float, name: str) -> None:
        expected = expected.view_as(found)
        if name.endswith("attn.qkv.bias"):  # the key bias has no true gradient, and Adam makes steps of the noise
            part = masks[name.split()[1]].nonzero().flatten() * 3 // len(masks[name.split()[1]])
            found, expected = found[part != 1], expected[part != 1]
        torch.testing.assert_close(found.detach(), expected, atol=tolerance, rtol=0, msg=lambda m: f"{name}: {m}")

    model = build()
    assert model.entries_lr == pytest.approx(lr)
    for name, mask in masks.items():
        assert torch.equal(model.chosen()[name].long(), mask.flatten().nonzero().flatten()), name
    penalty(model).backward()
    check(penalty(model), golden.tensors["rank.loss"], 1e-5, "penalty")
    gradient = golden.tensors["rank.grad"][masks[rank_name].bool()]
    check(entries_of(model, rank_name).values.grad, gradient, 2e-5, "gradient of the penalty")

    masks = {name: mask for name, mask in masks.items() if mask.any()}  # of the others nothing trains
    model = build()
    losses, middle = train(model, penalized=False)
    check(losses, golden.tensors["losses"], 1e-5, "losses")
    for name, mask in masks.items():
        check(middle[name], golden.part("mid")[name], 1e-6, f"middle {name}")
        check(entries_of(model, name).values, golden.part("final")[name], 1e-6, f"final {name}")
        active = golden.part("mask1")[name][mask.bool()].bool()
        assert torch.equal(entries_of(model, name).active, active), name

    model = build()
    check(train(model, penalized=True)[0], golden.tensors["losses_rank"], 1e-5, "losses with the penalty")
    check(entries_of(model, rank_name).values, golden.part("final_rank")[rank_name], 1e-6, "final with the penalty")


GOLDEN = {"sara": check_sara}


def test_lr_rule(build: Any) -> None:
    published = {2e-4: 9.3239e-4, 8e-4: 7.5578e-4, 1e-3: 7.0469e-4, 2e-3: 4.9659e-4, 5e-3: 1.7377e-4}
    for theta, lr in published.items():
        model = adapted(build("sara", sara_threshold=theta, sara_lr_rule=True, lr=1e-3))
        assert model.entries_lr == pytest.approx(lr, rel=1e-4)
        assert {group.get("lr", 1e-3) for group in model.param_groups()} == {1e-3, 1e-3 * exp(-350 * theta)}


def test_counts_at_a_threshold() -> None:
    """The spec's counts are of random weights: to a percent."""
    torch.manual_seed(0)
    for theta, count in {2e-4: 785_251, 2e-3: 6_916_437}.items():
        model: Any = compose(METHODS["sara"], task=Classification)(
            backbone="vit_base_patch16_224", pretrained=False, num_classes=10, sara_threshold=theta, sara_scope="all"
        )
        model.selection = model.select(magnitudes(model))
        assert sum(map(len, model.chosen().values())) == pytest.approx(count, rel=0.01)


def test_equals_at_the_cut_are_left_out(build: Any) -> None:
    model = build("sara", sara_fraction=0.5)
    scores = {name: torch.ones(4) for name in ("a", "b")}
    scores["a"][:2] = 0.5
    found = model.select(scores)
    assert found["a"].tolist() == [0, 1]
    assert not len(found["b"])


@pytest.mark.parametrize("theta", [1e-12, 1e3])
def test_a_threshold_that_takes_nothing_or_everything_is_refused(theta: float, build: Any) -> None:
    with pytest.raises(ValueError, match=rf"sara_threshold={theta} selects \d+ of \d+ weights"):
        adapted(build("sara", sara_threshold=theta))


@pytest.mark.parametrize(
    "options",
    [
        {"sara_fraction": 0.0},
        {"sara_fraction": 1.0},
        {"sara_threshold": 0.0},
        {"sara_rank_weight": -1.0},
        {"sara_progressive": 1.0},
    ],
)
def test_bad_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.*expected"):
        random_tiny("sara", **options)


def test_no_data_are_read(build: Any, data: Any, trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module, scoring = data(), ScoreBeforeFit()
    monkeypatch.setattr(type(module), "score_batches", None)
    trainer(callbacks=[scoring], max_steps=1).fit(build("sara"), datamodule=module)
    assert scoring.passes == 0


class Values(Callback):
    """Values and active entries after every step."""

    def __init__(self) -> None:
        self.steps: list[list[tuple[Tensor, Tensor]]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
        self.steps.append([(e.values.detach().clone(), e.active.clone()) for e in module.entries()])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("reset", [False, True])
def test_entries_that_grew_stop(optimizer: str, reset: bool, build: Any, data: Any, trainer: Any) -> None:
    """Under momentum, weight decay and clipping; the others go on."""
    options = {"sara_progressive": 0.5, "sara_reset_moments": reset, "weight_decay": 0.5, "lr": 1e-3}
    model, seen = build("sara", sara_fraction=0.2, optimizer=optimizer, **options), Values()
    trainer(callbacks=[seen], gradient_clip_val=1.0, limit_train_batches=6).fit(model, datamodule=data())
    middle, reselected, last = seen.steps[2], seen.steps[3], seen.steps[-1]
    assert len(seen.steps) == 6
    assert all(active.all() for _, active in middle)
    assert 0 < sum(int(active.sum()) for _, active in last) < sum(active.numel() for _, active in last)
    for (before, _), (_, then), (after, active) in zip(middle, reselected, last, strict=True):
        assert torch.equal(active, before.abs() < model.threshold)
        assert torch.equal(then, active)
        assert torch.equal(after[~active], before[~active])
        assert (after[active] != before[active]).any() or not active.any()


def test_without_reselection_all_go_on(build: Any, data: Any, trainer: Any) -> None:
    model, seen = build("sara", sara_progressive=None), Values()
    trainer(callbacks=[seen]).fit(model, datamodule=data())
    assert all(active.all() for _, active in seen.steps[-1])
    assert all((new != old).all() for (new, _), (old, _) in zip(seen.steps[-1], seen.steps[2], strict=True))


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_resume_around_the_reselection(epoch: int, build: Any, data: Any, trainer: Any, tmp_path: Path) -> None:
    """Before it, at the step of it, and after it; with the penalty on."""

    def fit(folder: str, ckpt_path: Path | None = None) -> dict[str, Any]:
        keep = ModelCheckpoint(tmp_path / folder, filename="{epoch}", save_top_k=-1)
        scoring = ScoreBeforeFit(resume=ckpt_path is not None)
        run = trainer(max_epochs=4, limit_train_batches=2, enable_checkpointing=True, callbacks=[keep, scoring])
        model = build("sara", sara_fraction=0.2, sara_rank_weight=0.1, backbone_args=WIDE, pretrained=False)
        run.fit(model, datamodule=data(), ckpt_path=ckpt_path)
        assert "train/rank_loss" in run.callback_metrics
        return torch.load(tmp_path / folder / "epoch=3.ckpt", weights_only=True)

    whole = fit("whole")
    resumed = fit("resumed", tmp_path / "whole" / f"epoch={epoch}.ckpt")
    assert not all(t.all() for name, t in whole["state_dict"].items() if name.endswith(".active"))
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, resumed["state_dict"][name]), name


WIDE = {"img_size": 32, "patch_size": 8, "embed_dim": 72, "depth": 1, "num_heads": 2}


def test_the_penalty_is_of_what_trains(build: Any) -> None:
    """One matrix a step, every eligible one in turn; gradients are lambda U V^T at the active entries."""
    model = adapted(build("sara", sara_fraction=0.3, backbone_args=WIDE, pretrained=False))
    assert model.matrices() == ["blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2"]
    drawn = set()
    for step in range(40):
        type(model).global_step = step
        model.zero_grad()
        model.rank_loss().backward()
        moved = [n for n in model.chosen() if entries_of(model, n).values.grad is not None]
        assert len(moved) == 1
        drawn.add(moved[0])
    assert drawn == {f"{path}.weight" for path in model.matrices()}

    entries = entries_of(model, moved[0])
    weight = dict(model.backbone.named_parameters())[moved[0]]
    entries.active[::3] = False
    model.zero_grad()
    model.rank_loss().backward()
    positions = entries.indices.long()[entries.active]
    matrix = torch.zeros(weight.numel())
    matrix[positions] = weight.flatten()[positions]
    u, _, v = torch.linalg.svd(matrix.view(weight.shape), full_matrices=False)
    torch.testing.assert_close(
        entries.values.grad[entries.active], 5e-4 * (u @ v).flatten()[positions], atol=1e-6, rtol=0
    )
    assert not entries.values.grad[~entries.active].any()
    assert build("sara", sara_rank_weight=0.0).rank_loss() is None


def test_convolutions_can_be_penalized(build: Any) -> None:
    options = {"backbone_args": WIDE, "pretrained": False, "sara_fraction": 0.3}
    assert "patch_embed.proj" not in adapted(build("sara", **options)).matrices()
    assert "patch_embed.proj" in adapted(build("sara", sara_rank_convs=True, **options)).matrices()


@pytest.mark.parametrize("scope", ["matrices", "all"])
def test_bytes_of_a_trained_weight(scope: str, build: Any, data: Any, trainer: Any) -> None:
    """Value, gradient, two moments, index and one byte: 21 for each chosen weight, wherever they are kept."""
    model = build("sara", sara_scope=scope, sara_fraction=0.1)
    seen: dict[int, int] = {}

    class Held(Callback):
        def on_before_zero_grad(self, trainer: Any, module: Any, optimizer: Any) -> None:
            if trainer.global_step < 4:
                return
            tensors = list(module.selection.values())
            for entries in module.entries():
                state = optimizer.state[entries.values]
                assert entries.values.grad is None or entries.values.grad.shape == entries.values.shape
                tensors += [entries.values, state["exp_avg"], state["exp_avg_sq"], *entries.buffers()]
                tensors.append(torch.empty_like(entries.values))  # the gradient that comes next
            seen.update({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors})

    trainer(callbacks=[Held()], max_steps=5).fit(model, datamodule=data())
    count = sum(len(indices) for indices in model.chosen().values())
    assert count > 1000
    assert sum(seen.values()) <= 24 * count
    frozen = [p for p in model.backbone.parameters() if not p.requires_grad]
    assert all(p.grad is None for p in frozen)


def test_only_chosen_entries_move(build: Any, data: Any, trainer: Any) -> None:
    model = build("sara", sara_scope="all", sara_fraction=0.1, weight_decay=0.5, lr=0.1)
    before = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}
    trainer().fit(model, datamodule=data())
    merged = model.merge()
    for name, old in before.items():
        if name in model.chosen():
            rest = torch.ones(old.numel(), dtype=torch.bool)
            rest[model.chosen()[name].long()] = False
            assert torch.equal(merged.get_parameter(name).flatten()[rest], old.flatten()[rest]), name
    moved = {name for name in model.chosen() if not torch.equal(merged.get_parameter(name), before[name])}
    assert {"cls_token", "pos_embed", "blocks.0.norm1.bias", "blocks.1.mlp.fc2.weight"} <= moved
