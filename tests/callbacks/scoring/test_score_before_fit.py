"""Scoring before the fit."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel

from callbacks.scoring.score_before_fit import ScoreBeforeFit
from checkpoints.fingerprint import fingerprint
from commands.lightning.cli import GraftCLI
from datamodules import ImageDataset
from methods import METHODS
from methods.core.selective import Selective
from methods.core.trains_entries import TrainsEntries
from methods.spt import place
from tests.conftest import BACKBONE, TINY, build_tiny, quiet_trainer
from tests.support.ranks import TwoRanks

SCORED = [name for name, method in METHODS.items() if issubclass(method, Selective) and method.scorer is not None]
WITH_DATA = [name for name in SCORED if METHODS[name].scorer.needs_data]  # type: ignore[union-attr]


class FirstBatch(Callback):
    """Pixels and loss of the first training step."""

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if trainer.global_step == 1:
            self.pixels, self.loss = batch.inputs.clone(), outputs["loss"].detach().clone()


ORDER = """
event                       group  data  restored  wrapped  optimizers
model.configure_callbacks   -      -     -         -        -
data.prepare_data           x      -     -         -        -
data.setup                  x      -     -         -        -
callback.setup              x      x     -         -        -
model.setup                 x      x     -         -        -
model.configure_model       x      x     -         -        -
model.on_load_checkpoint    x      x     -         -        -
callback.on_load_checkpoint x      x     x         -        -
model.configure_optimizers  x      x     x         x        -
callback.on_fit_start       x      x     x         x        x
model.on_fit_start          x      x     x         x        x
callback.on_train_start     x      x     x         x        x
"""
"""Lightning's events, and what there is when each comes: the ground that the design stands on."""


class Order(Callback):
    """Lightning's events in the order in which they come, and what the optimizer holds.

    Args:
        model: The model, whose methods are watched.
        data: The data, likewise.
        head: The classifier of a checkpoint that is to be restored.
    """

    def __init__(self, model: Any, data: Any, head: torch.Tensor | None = None) -> None:
        self.model, self.data, self.head = model, data, head
        self.rows: list[str] = []
        self.inside = 0
        names = {"configure_callbacks", "setup", "configure_model", "on_load_checkpoint", "configure_optimizers"}
        for watched, name in [(model, n) for n in (*names, "on_fit_start")] + [(data, "prepare_data"), (data, "setup")]:
            setattr(watched, name, partial(self.note, watched, name, getattr(watched, name)))

    def note(self, watched: Any, name: str, original: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.inside:  # what Lightning calls, not what we call then
            self.add(f"{'model' if watched is self.model else 'data'}.{name}")
        self.inside += 1
        try:
            return original(*args, **kwargs)
        finally:
            self.inside -= 1

    def add(self, event: str) -> None:
        trainer = self.model._trainer
        states = [
            torch.distributed.is_initialized(),
            bool(self.data.splits),
            self.head is not None and torch.equal(self.model.backbone.head.weight, self.head),
            trainer is not None and isinstance(trainer.strategy.model, DistributedDataParallel),
            trainer is not None and bool(trainer.optimizers),
        ]
        self.rows.append(" ".join([event, *("x" if state else "-" for state in states)]))

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        assert all(p.dtype is torch.float32 and p.device.type == "cpu" for p in pl_module.parameters())
        self.add("callback.setup")

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: Any) -> None:
        self.add("callback.on_load_checkpoint")

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.add("callback.on_fit_start")
        self.optimized = sum(p.numel() for group in trainer.optimizers[0].param_groups for p in group["params"])

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.add("callback.on_train_start")


def expected(*, world: int, resumed: bool) -> list[str]:
    """The rows of the table for one process or several, with a checkpoint or without."""
    rows = []
    for line in ORDER.strip().splitlines()[1:]:
        event, group, data, restored, wrapped, optimizers = line.split()
        if resumed or "load_checkpoint" not in event:
            several = (group, wrapped) if world > 1 else ("-", "-")
            rows.append(" ".join([event, several[0], data, restored if resumed else "-", several[1], optimizers]))
    return rows


def chosen(method: str, model: Any) -> int:
    """Parameters that a selection and the head amount to, counted by hand."""
    count, backbone = sum(p.numel() for p in model.backbone.head.parameters()), model.backbone
    if method == "gps":
        left_out = ("norm", "head")
        biases = [
            p.numel() for n, p in backbone.named_parameters() if "bias" in n and not any(word in n for word in left_out)
        ]
        return count + sum(map(len, model.selection.values())) + sum(biases)
    if method == "sct":
        return count + sum(len(channels) * (len(channels) + 1) for channels in model.selection.values())
    if isinstance(model, TrainsEntries):
        return count + sum(map(len, model.chosen().values()))
    count += backbone.cls_token.numel()
    for name, tensor in model.selection.items():
        kind, _, name = name.partition("/")
        if kind == "structured":
            path, (first, last) = place(backbone, name)
            count += int(tensor) * (backbone.get_submodule(path).in_features + last - first)
        else:
            count += len(tensor) if kind == "entries" else backbone.get_parameter(name).numel()
    return count


def test_order_of_events(build: Any, data: Any, trainer: Any, tmp_path: Path) -> None:
    """A new Lightning that moves an event fails here, on one process; two processes are below."""
    keep = ModelCheckpoint(tmp_path, filename="one", save_top_k=1)
    first = build("gps")
    trainer(max_steps=1, callbacks=[keep], enable_checkpointing=True).fit(first, datamodule=data())
    head = torch.load(keep.best_model_path, weights_only=True)["state_dict"]["backbone.head.weight"]
    model, images = build("gps"), data()
    order = Order(model, images, head)
    callbacks = [ScoreBeforeFit(resume=True), order, ModelCheckpoint(tmp_path / "again")]
    run = trainer(callbacks=callbacks, enable_checkpointing=True, max_epochs=2, num_sanity_val_steps=0)
    run.fit(model, datamodule=images, ckpt_path=keep.best_model_path)
    assert order.rows == expected(world=1, resumed=True)


@pytest.mark.parametrize("method", SCORED)
def test_the_optimizer_holds_the_selection_and_the_head(method: str, build: Any, data: Any, trainer: Any) -> None:
    model, images = build(method), data()
    order = Order(model, images)
    trainer(callbacks=[order], max_steps=1).fit(model, datamodule=images)
    assert order.rows == expected(world=1, resumed=False)
    assert order.optimized == chosen(method, model)


@pytest.mark.parametrize("method", SCORED)
def test_scored_once_and_never_on_resume(method: str, build: Any, data: Any, trainer: Any, tmp_path: Path) -> None:
    scoring = ScoreBeforeFit()
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(max_epochs=2, callbacks=[scoring, keep], enable_checkpointing=True).fit(build(method), datamodule=data())
    assert scoring.passes == METHODS[method].scorer.needs_data  # type: ignore[union-attr]
    again, model = ScoreBeforeFit(resume=True), build(method)
    resumed = trainer(max_epochs=2, callbacks=[again, ModelCheckpoint(tmp_path / "again")], enable_checkpointing=True)
    resumed.fit(model, datamodule=data(), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert again.passes == 0
    saved = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)["peft"]["selection"]
    assert fingerprint(model.selection) == fingerprint(saved)
    tested = ScoreBeforeFit()
    run = trainer(callbacks=[tested, keep], enable_checkpointing=True)
    run.test(build(method), datamodule=data(), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert tested.passes == 0


def test_the_checkpoint_wins_where_nobody_said_that_it_comes(
    build: Any, data: Any, trainer: Any, tmp_path: Path
) -> None:
    keep = ModelCheckpoint(tmp_path, filename="last", save_top_k=1)
    first = build("gps", gps_k=3)
    trainer(callbacks=[keep], enable_checkpointing=True).fit(first, datamodule=data())
    second = build("gps", gps_k=1)
    resumed = trainer(max_epochs=2, callbacks=[ModelCheckpoint(tmp_path / "again")], enable_checkpointing=True)
    resumed.fit(second, datamodule=data(), ckpt_path=keep.best_model_path)
    assert fingerprint(second.selection) == fingerprint(first.selection)
    assert second.parameter_counts() == first.parameter_counts()


def test_the_command_line_says_that_a_checkpoint_comes(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--data", "ImageDataset", "--data.root", str(images), "--data.batch_size", "4"]
    quiet = {"accelerator": "cpu", "limit_train_batches": 2, "enable_progress_bar": "false"}
    options += [f"--trainer.{key}={value}" for key, value in quiet.items()] + ["--run_root", str(tmp_path)]
    model = {"backbone": BACKBONE, "pretrained": weights} | {f"backbone_args.{k}": v for k, v in TINY.items()}
    fit = ["fit", "--method", "gps", *options, *(f"--model.{key}={value}" for key, value in model.items())]
    folder = Path(GraftCLI.run([*fit, "--trainer.max_epochs=1"]).trainer.default_root_dir)

    def scores(*args: Any) -> Any:
        raise AssertionError("scored again")

    monkeypatch.setattr(ScoreBeforeFit, "scores", scores)
    last = ["--ckpt_path", str(folder / "checkpoints/last.ckpt")]
    resumed = GraftCLI.run(["fit", *last, *options, "--trainer.max_epochs=2"])
    saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["peft"]["selection"]
    assert fingerprint(resumed.model.selection) == fingerprint(saved)
    for ckpt_path in (last, ["--ckpt_path", str(folder / "adapter")]):
        for command in ("test", "predict"):
            GraftCLI.run([command, *ckpt_path, *options])


def test_cache(build: Any, data: Any, trainer: Any, tmp_path: Path) -> None:
    def passes(seed: int = 0, moved: bool = False, val_split: str | None = None, **options: Any) -> int:
        scoring, model = ScoreBeforeFit(cache_dir=str(tmp_path)), build("gps", **options)
        model.backbone.blocks[0].mlp.fc1.weight.data[3, 5] += moved
        seed_everything(seed, verbose=False)
        trainer(callbacks=[scoring], max_steps=1).fit(model, datamodule=data(val_split=val_split))
        return scoring.passes

    assert passes() == 1
    assert passes() == 0
    assert passes(gps_k=2) == 0  # another budget, the same scores
    assert passes(gps_loss="ce") == 1
    assert passes(gps_loss="ce", label_smoothing=0.1) == 1
    assert passes(seed=1) == 1
    assert passes(drop_path=0.1) == 1
    assert passes(moved=True) == 1  # a single weight
    assert passes(pretrained=False) == 1
    assert len(list(tmp_path.glob("gps-*.safetensors"))) == 7


def test_the_order_of_tensors_in_the_file_does_not_matter(build: Any, data: Any, trainer: Any, tmp_path: Path) -> None:
    chosen = []
    for passes in (1, 0):
        model, scoring = build("gps", gps_select="random"), ScoreBeforeFit(cache_dir=str(tmp_path))
        trainer(callbacks=[scoring], max_steps=1).fit(model, datamodule=data())
        chosen.append(fingerprint(model.selection))
        assert scoring.passes == passes
    assert chosen[0] == chosen[1]


def test_another_split_is_another_cache_file(build: Any, data: Any, trainer: Any, tmp_path: Path) -> None:
    def passes(**options: Any) -> int:
        scoring = ScoreBeforeFit(cache_dir=str(tmp_path))
        trainer(callbacks=[scoring], max_steps=1).fit(build("spt"), datamodule=data(**options))
        return scoring.passes

    assert [passes(), passes(), passes(train_split="test"), passes(train_split="test")] == [1, 0, 1, 0]


def test_a_damaged_cache_is_made_anew(build: Any, data: Any, trainer: Any, tmp_path: Path) -> None:
    def fit() -> int:
        scoring = ScoreBeforeFit(cache_dir=str(tmp_path))
        trainer(callbacks=[scoring], max_steps=1).fit(build("spt"), datamodule=data())
        return scoring.passes

    assert fit() == 1
    path = next(tmp_path.glob("spt-*.safetensors"))
    good, key = load_file(path), safe_open(path, "pt").metadata()
    bad = {name: torch.full_like(score, float("nan")) for name, score in good.items()}
    for content, message in ((bad, "holds NaN"), (good, "made for another key"), (None, "is damaged")):
        if content is None:
            path.write_bytes(b"damaged")
        else:
            save_file(content, path, metadata=key if content is bad else None)
        with pytest.warns(UserWarning, match=message):
            assert fit() == 1
        assert fit() == 0


@pytest.mark.parametrize("method", WITH_DATA)
def test_what_follows_does_not_know_of_the_pass(
    method: str, build: Any, data: Any, trainer: Any, tmp_path: Path
) -> None:
    """With scores from the cache and without: the same new modules, first batch, first loss and first step."""
    runs = []
    for _ in range(2):
        scoring, first, model = ScoreBeforeFit(cache_dir=str(tmp_path), mode="train"), FirstBatch(), build(method)
        run = trainer(callbacks=[scoring, first], max_steps=1)
        run.fit(model, datamodule=data(augmentation="rrc"))
        runs.append({"pixels": first.pixels, "loss": first.loss} | model.delta_state_dict())
        runs[-1]["passes"] = torch.tensor(scoring.passes)
    assert [int(run.pop("passes")) for run in runs] == [1, 0]
    assert runs[0].keys() == runs[1].keys()
    for name, tensor in runs[0].items():
        assert torch.equal(tensor, runs[1][name]), name


class Types(ScoreBeforeFit):
    """The types of weights and sums while batches pass."""

    def step(self, pl_module: Any, scorer: Any, batch: Any) -> None:
        super().step(pl_module, scorer, batch)
        assert {p.dtype for p in pl_module.parameters()} == {torch.float32}
        assert {total.dtype for total in scorer.sums.values()} == {torch.float32}
        self.seen = True


@pytest.mark.parametrize("method", WITH_DATA)
@pytest.mark.parametrize("scoring", ["fp32", "bf16"])
@pytest.mark.parametrize("training", ["32-true", "bf16-mixed", "bf16-true"])
def test_sums_are_fp32(method: str, scoring: Any, training: Any, build: Any, data: Any, trainer: Any) -> None:
    types, model = Types(precision=scoring), build(method)
    trainer(callbacks=[types], max_steps=1, precision=training).fit(model, datamodule=data())
    assert types.seen


def test_bf16_scores_agree(build: Any, data: Any, trainer: Any) -> None:
    chosen = []
    for precision in ("fp32", "bf16"):
        model = build("gps")
        trainer(callbacks=[ScoreBeforeFit(precision=precision)], max_steps=1).fit(model, datamodule=data())
        chosen.append(torch.cat(list(model.selection.values())))
    assert (chosen[0] == chosen[1]).float().mean() > 0.9


def test_a_plain_loader_is_refused(build: Any, data: Any, trainer: Any) -> None:
    images = torch.utils.data.TensorDataset(torch.zeros(4, 3, 32, 32), torch.zeros(4).long())
    loader = torch.utils.data.DataLoader(images)
    with pytest.raises(ValueError, match="pass the data as a datamodule"):
        trainer().fit(build("gps"), train_dataloaders=loader, val_dataloaders=loader)


def test_failures_are_loud(build: Any, data: Any, trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("gps")
    monkeypatch.setattr(model, "score_loss", lambda batch: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(ValueError, match="the scoring loss is nan"):
        trainer().fit(model, datamodule=data())
    with pytest.raises(ValueError, match="scoring batches of 25 images: the train split has only 24"):
        next(data_of(data(batch_size=24, val_split="none"), model).score_batches(25, drop_last=True))


def data_of(datamodule: ImageDataset, model: Any) -> ImageDataset:
    datamodule.configure(model.input_config)
    samples = datamodule.samples("train")
    assert samples is not None
    datamodule.splits["train"] = datamodule.dataset("train", samples)
    return datamodule


def test_batches_do_not_depend_on_the_world(build: Any, data: Any) -> None:
    module = data_of(data(), build("gps"))
    alone = list(module.score_batches(5, shuffle=True, views=2))
    shares = [list(module.score_batches(5, shuffle=True, views=2, rank=rank, world=2)) for rank in (0, 1)]
    for number, batch in enumerate(alone):
        assert torch.equal(shares[number % 2][number // 2].inputs, batch.inputs)
        assert torch.equal(shares[number % 2][number // 2].targets, batch.targets)
    assert [batch.size for batch in alone] == [5, 5, 5, 5, 4]
    twice = list(module.score_batches(5, shuffle=True, passes=2, max_batches=9))
    assert [batch.size for batch in twice] == [5, 5, 5, 5, 4, 5, 5, 5, 5]
    assert not torch.equal(twice[0].inputs, twice[5].inputs)  # another order


def selections(rank: int, world: int, images: Path, weights: Path, folder: Path) -> dict[tuple[str, int], str]:
    """What every method that scores chooses before it trains a step, on one rank of ``world``."""
    found = {}
    for method in SCORED:
        for batch_size in (8, 43):  # an uneven last batch, and more ranks than batches
            model: Any = build_tiny(weights, method)
            strategy = "ddp" if world > 1 else "auto"
            run = quiet_trainer(folder, devices=world, strategy=strategy, max_steps=1, limit_val_batches=0)
            data: Any = ImageDataset(root=str(images), batch_size=8, resize="direct", val_split="none")
            data.score_batches = partial(in_batches_of, batch_size, data.score_batches)
            order = Order(model, data)
            run.callbacks.append(order)  # type: ignore[attr-defined]
            run.fit(model, datamodule=data)
            if method == SCORED[0] and batch_size == 8:  # the group of the ranks outlives its first fit
                rows = [row for row in expected(world=world, resumed=False) if rank == 0 or "prepare_data" not in row]
                assert order.rows == rows, order.rows
            assert order.optimized == chosen(method, model)
            found[method, batch_size] = fingerprint(model.selection)
    return found


def in_batches_of(size: int, score_batches: Any, **options: Any) -> Any:
    return score_batches(**options | {"batch_size": size})


def test_two_ranks_choose_what_one_chooses(two_ranks: TwoRanks, weights: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    for index in range(43):
        folder = tmp_path / "images/train" / "abc"[index % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    one = selections(0, 1, tmp_path / "images", weights, tmp_path)
    assert two_ranks(selections, 2, tmp_path / "images", weights, tmp_path) == [one, one]
