"""What scoring before the fit does with bad input: it stops before training and says why, on every rank."""

import copy
import importlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn

from callbacks.scoring.score_before_fit import ScoreBeforeFit
from checkpoints.fingerprint import fingerprint
from datamodules import ImageDataset
from methods import METHODS
from methods.core.selective import Selective
from methods.qlora import NF4Linear
from tests.conftest import BACKBONE, TINY, build_tiny, checkpoint_of, quiet_trainer
from tests.support.batches import as_batch
from tests.support.ranks import TwoRanks

SCORED = [name for name, method in METHODS.items() if issubclass(method, Selective) and method.scorer is not None]
WITH_DATA = [name for name in SCORED if METHODS[name].scorer.needs_data]  # type: ignore[union-attr]
BY_GRADIENT = ["gps", "spt"]
SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 12, "depths": (1, 1), "num_heads": (2, 2)}


@pytest.fixture
def fit(build: Any, data: Any, trainer: Any) -> Callable[..., Any]:
    """``fit("gps", batches=[...], gps_k=2)``: score a model, with these batches if given, and train one step."""

    def run(
        method: str | Any, batches: list[Any] | None = None, scoring: ScoreBeforeFit | None = None, **options: Any
    ) -> Any:
        model = build(method, **options) if isinstance(method, str) else method
        images = data()
        if batches is not None:
            images.score_batches = lambda **given: iter(batches)
        trainer(callbacks=[scoring or ScoreBeforeFit()], max_steps=1).fit(model, datamodule=images)
        return model

    return run


def images(count: int = 4) -> Tensor:
    return torch.randint(255, (count, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


# data


@pytest.mark.parametrize("method", WITH_DATA)
@pytest.mark.parametrize("batch", [images(), (images(),), (images(), None)], ids=["tensor", "one", "none"])
def test_no_labels(method: str, batch: Any, fit: Any) -> None:
    with pytest.raises(ValueError, match=r"a scoring batch is a \w+: expected a Batch of inputs, targets, valid"):
        fit(method, [batch])


@pytest.mark.parametrize("method", ["gps", "sct"])
def test_soft_labels_where_classes_are_needed(method: str, fit: Any) -> None:
    batch = as_batch(images(8) if method == "gps" else images(), torch.rand(4, 3))
    with pytest.raises(ValueError, match=r"one class per image \(B,\), got float32 labels of shape \(4, 3\)"):
        fit(method, [batch])


def test_one_image_has_nothing_to_contrast_with(build: Any, data: Any, trainer: Any) -> None:
    with pytest.raises(ValueError, match=r"compares images: data\.batch_size=1, expected at least 2"):
        trainer().fit(build("gps"), datamodule=data(batch_size=1))


@pytest.mark.parametrize("method", WITH_DATA)
def test_no_batch_on_any_rank(method: str, fit: Any) -> None:
    with pytest.raises(ValueError, match="gave no batch on any rank"):
        fit(method, [])


# scores


def test_a_loss_that_is_not_finite_names_the_weight(build: Any, fit: Any) -> None:
    model = build("gps")
    model.backbone.blocks[1].mlp.fc1.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"loss is nan.*backbone\.blocks\.1\.mlp\.fc1\.weight holds NaN"):
        fit(model)


def test_scores_that_are_not_finite_are_named(build: Any, fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("spt")
    loss = model.score_loss
    monkeypatch.setattr(model, "score_loss", lambda batch: 1e30 * loss(batch))  # its squares are too large for fp32
    with pytest.raises(ValueError, match=r"the score of blocks\.0\.norm1\.weight holds NaN or infinity"):
        fit(model)


def test_one_target_without_a_gradient_is_a_warning(build: Any, fit: Any) -> None:
    model = build("gps")
    nn.init.zeros_(model.backbone.blocks[1].mlp.fc2.weight)  # nothing of the loss reaches fc1
    with (
        pytest.warns(UserWarning, match=r"all scores are zero in blocks\.1\.mlp\.fc1\.weight: the loss"),
        pytest.warns(UserWarning, match=r"rows whose scores are all zero .*: 192 of blocks\.1\.mlp\.fc1\.weight"),
    ):
        fit(model)
    assert model.selection["blocks.1.mlp.fc1.weight"].tolist() == list(range(0, 192 * 48, 48))


@pytest.mark.parametrize("method", BY_GRADIENT)
def test_zero_everywhere_is_an_error(method: str, build: Any, fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(method)
    monkeypatch.setattr(model, "score_loss", lambda batch: 0 * model(batch.inputs).sum())
    with pytest.raises(ValueError, match="all scores are zero, first"):
        fit(model)


# budgets


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spt_budget": 10.0}, r"a budget of 10,000,000 parameters cannot be met: .* at most the pool of"),
        ({"spt_budget": 4e-5}, r"a budget of 40 parameters cannot be met: expected more than 48 \(the class token"),
        ({"spt_budget": 1e-3}, r"a budget of 1,000 parameters cannot be met: the smallest choice trains"),
        ({"method": "sct", "sct_channels": 49}, "sct_channels=49: the backbone has only 48 channels"),
    ],
)
def test_budgets_that_cannot_be_met(options: dict[str, Any], message: str, fit: Any) -> None:
    with pytest.raises(ValueError, match=message):
        fit(**{"method": "spt"} | options)


def test_more_connections_than_there_are(fit: Any) -> None:
    with pytest.warns(UserWarning, match=r"gps_k=60: whole rows train .*, blocks\.0\.attn\.qkv\.weight, .*\(6 tensors"):
        model = fit("gps", gps_k=60)
    rows = {
        name: indices.numel() / len(model.backbone.get_parameter(name)) for name, indices in model.selection.items()
    }
    assert set(rows.values()) == {48, 60}


# targets


@pytest.mark.parametrize("method", SCORED)
def test_an_unknown_target_names_its_neighbours(
    method: str, build: Any, fit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(method)
    target = model.score_targets()[-1]
    monkeypatch.setattr(model, "score_targets", lambda: [target.replace("norm", "nrm").replace("fc2", "fc_2")])
    with pytest.raises(ValueError, match=rf"the model does not have: .* \(nearest to .*{target}"):
        fit(model)


def test_a_parameter_in_two_targets(build: Any, fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("gps")
    name = model.score_targets()[1]
    monkeypatch.setattr(model, "score_targets", lambda: [name, name])
    with pytest.raises(ValueError, match=rf"score targets named twice: {name}"):
        fit(model)
    first, second = model.backbone.blocks
    second.attn.qkv.weight = first.attn.qkv.weight
    tied = ["blocks.0.attn.qkv.weight", "blocks.1.attn.qkv.weight"]
    monkeypatch.setattr(model, "score_targets", lambda: tied)
    with pytest.raises(ValueError, match=rf"{tied[0]} and {tied[1]} are one tensor: name it once"):
        fit(model)


@pytest.mark.parametrize("method", SCORED)
@pytest.mark.parametrize(
    ("backbone", "args"),
    [
        (BACKBONE, TINY | {"depth": 1}),
        (BACKBONE, TINY | {"embed_dim": 24}),
        ("swin_tiny_patch4_window7_224", SWIN),
    ],
    ids=["depth", "width", "swin"],
)
def test_the_selection_of_another_backbone(method: str, backbone: str, args: dict[str, Any], build: Any) -> None:
    model = build(method)
    model.selection = model.select(importlib.import_module(f"tests.methods.test_{method}").scores(model))
    model.configure_model()
    other = build(method, backbone=backbone, backbone_args=args, pretrained=False)
    with pytest.raises(ValueError, match=f"selection does not fit {backbone}|trained on other weights"):
        other.on_load_checkpoint(copy.deepcopy(checkpoint_of(model)))


# what cannot be scored


@pytest.mark.parametrize("method", BY_GRADIENT)
def test_quantised_weights(method: str, build: Any, fit: Any) -> None:
    model = build(method)
    linear = model.backbone.blocks[0].mlp.fc1
    linear.__class__ = NF4Linear
    linear.pack("torch")
    with pytest.raises(
        ValueError, match=r"blocks\.0\.mlp\.fc1 is a quantised NF4Linear: packed bytes have no gradient"
    ):
        fit(model)


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy])
def test_strategies_that_shard(
    strategy: type, build: Any, data: Any, trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer()
    # neither runs on a CPU: only the class counts
    monkeypatch.setattr(type(run), "strategy", property(lambda self: strategy.__new__(strategy)))
    run.datamodule = data()
    with pytest.raises(ValueError, match=f"{strategy.__name__}: scoring before the fit needs one device or DDP"):
        ScoreBeforeFit().setup(run, build("gps"), "fit")


@pytest.mark.filterwarnings("ignore")  # the compiler's own
class TestCompiled:
    @pytest.mark.parametrize("method", SCORED)
    def test_a_wrapped_backbone_is_refused(self, method: str, build: Any, fit: Any) -> None:
        model = build(method)
        model.backbone = torch.compile(model.backbone, backend="eager")
        with pytest.raises(ValueError, match=r"backbone is wrapped by torch\.compile.*pass its original \(_orig_mod\)"):
            fit(model)

    @pytest.mark.parametrize("whole", [True, False])
    def test_a_model_compiled_in_place_is_scored_as_the_original(
        self, whole: bool, build: Any, data: Any, trainer: Any, fit: Any
    ) -> None:
        torch._dynamo.reset()
        graphs: list[Any] = []

        def compiler(graph: Any, inputs: Any) -> Any:
            graphs.append(graph)
            return graph.forward

        model, expected = build("spt"), fit("spt").selection
        if not whole:
            model.backbone.blocks[1].compile(backend=compiler)
        given = torch.compile(model, backend=compiler) if whole else model
        trainer(max_steps=0, num_sanity_val_steps=0).fit(given, datamodule=data())
        assert not graphs
        assert fingerprint(model.selection) == fingerprint(expected)


# what must be as before


def state(model: nn.Module) -> dict[str, Any]:
    names: dict[str, Any] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names |= {f"training of {name}": module.training for name, module in model.named_modules()}
    names |= {f"need of {name}": (p.requires_grad, p.grad is None) for name, p in model.named_parameters()}
    return names | {
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "torch": torch.get_rng_state(),
    }


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    pairs = ((one[name], two[name]) for name in one.keys() | two.keys())
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


class Watched(ScoreBeforeFit):
    """Compares the model and the random states before and after the pass."""

    def scores(self, trainer: Trainer, pl_module: Any) -> dict[str, Tensor]:
        next(pl_module.backbone.children()).eval()  # a user's own choice, as the next
        first = next(pl_module.backbone.parameters()).requires_grad_(False)
        before = state(pl_module)
        found = super().scores(trainer, pl_module)
        assert same(before, state(pl_module))
        assert not first.requires_grad
        assert all(p.grad is None for p in pl_module.parameters())
        return found


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("method", WITH_DATA)
def test_the_model_is_as_before(method: str, mode: Any, fit: Any) -> None:
    scoring = Watched(mode=mode)
    fit(method, scoring=scoring, drop_path=0.2)
    assert scoring.passes == 1


def test_also_where_scoring_fails(build: Any, fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("gps")
    monkeypatch.setattr(model, "score_loss", lambda batch: torch.rand(3) * float("nan"))
    before = {n: v for n, v in state(model).items() if n not in ("python", "numpy", "torch")}
    with pytest.raises(Exception, match="ambiguous"):
        fit(model)
    after = state(model)
    assert same(before, {name: after[name] for name in before})


@pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode")
@pytest.mark.parametrize("method", BY_GRADIENT)
def test_batch_norm_statistics_do_not_move(method: str, fit: Any) -> None:
    """In training mode they would, and the backbone would be another one."""
    options = {"spt_budget": 0.02} if method == "spt" else {}
    channels = (16, 32, 32, 64) if method == "spt" else (8, 8, 8, 16)
    fit(
        method,
        scoring=Watched(mode="train"),
        backbone="test_resnet",
        backbone_args={"channels": channels, "zero_init_last": False},
        pretrained=False,
        **options,
    )


# several ranks


def break_pass(model: Any, scoring: ScoreBeforeFit, images: ImageDataset, rank: int) -> None:
    original = images.score_batches

    def batches(**options: Any) -> Iterator[Any]:
        yield next(iter(original(**options)))
        if rank == 1:
            raise OSError("the disk is gone")

    images.score_batches = batches  # type: ignore[method-assign]


def break_selection(model: Any, scoring: ScoreBeforeFit, images: ImageDataset, rank: int) -> None:
    def select(scores: Any) -> Any:
        raise KeyError("no such score")

    model.select = select


def break_cache(model: Any, scoring: ScoreBeforeFit, images: ImageDataset, rank: int) -> None:
    if rank == 0:  # only this one writes
        scoring.cache_dir = "/proc/nowhere"


FAILURES = {"pass": break_pass, "selection": break_selection, "cache": break_cache}
EXPECTED = {"pass": (1, "the disk is gone"), "selection": (0, "no such score"), "cache": (0, "/proc/nowhere")}


def failures(rank: int, images: Path, weights: Path, folder: Path) -> dict[str, str]:
    """What each failure comes to on one of two ranks."""
    found = {}
    for name, break_it in FAILURES.items():
        model = build_tiny(weights, "gps")
        data = ImageDataset(root=str(images), batch_size=4, resize="direct")
        scoring = ScoreBeforeFit(cache_dir=str(folder))
        break_it(model, scoring, data, rank)
        run = quiet_trainer(folder, devices=2, strategy="ddp", max_steps=1, callbacks=[scoring])
        try:
            run.fit(model, datamodule=data)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def test_a_rank_that_fails_leaves_none_waiting(
    two_ranks: TwoRanks, images: Path, weights: Path, tmp_path: Path
) -> None:
    ranks = two_ranks(failures, images, weights, tmp_path, limit=120)
    for name, (failing, message) in EXPECTED.items():
        assert message in ranks[failing][name]
        assert "ValueError: scoring failed on another rank" in ranks[1 - failing][name]
