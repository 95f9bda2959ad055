"""Scoring before the fit."""

import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from lightning import Callback, LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from callbacks.delta_file import fingerprint
from callbacks.score_before_fit import ScoreBeforeFit
from datamodules import ImageDataset
from lightning_modules import compose
from lightning_modules.classification import Classification
from methods import METHODS
from tests.conftest import BACKBONE, TINY, TINY_OPTIONS

SCORED = [name for name, method in METHODS.items() if method.scorer is not None]


class FirstBatch(Callback):
    """Pixels and loss of the first training step."""

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if trainer.global_step == 1:
            self.pixels, self.loss = batch[0].clone(), outputs["loss"].detach().clone()


class Order(Callback):
    """Lightning's events, in the order in which they come."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        assert trainer.datamodule.splits  # type: ignore[attr-defined]
        assert not trainer.optimizers
        self.events.append("callback.setup")

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        assert trainer.optimizers
        self.events.append("on_fit_start")


def test_order_of_events(build: Any, data: Any, trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The places in Lightning's order that the design stands on; a new Lightning that moves them fails here."""
    order, model = Order(), build("gps")
    for name in ("configure_callbacks", "configure_model", "configure_optimizers"):
        original = getattr(model, name)

        def record(*args: Any, name: str = name, original: Any = original) -> Any:
            order.events.append(name)
            return original(*args)

        monkeypatch.setattr(model, name, record)
    trainer(callbacks=[order], max_steps=1).fit(model, datamodule=data())
    assert order.events == [
        "configure_callbacks",
        "callback.setup",
        "configure_model",
        "configure_optimizers",
        "on_fit_start",
    ]


@pytest.mark.parametrize("method", SCORED)
def test_scored_once_and_never_on_resume(method: str, build: Any, data: Any, trainer: Any, tmp_path: Path) -> None:
    scoring = ScoreBeforeFit()
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(max_epochs=2, callbacks=[scoring, keep], enable_checkpointing=True).fit(build(method), datamodule=data())
    assert scoring.passes == 1
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


def test_cache(build: Any, data: Any, trainer: Any, tmp_path: Path) -> None:
    def passes(seed: int = 0, **options: Any) -> tuple[int, Any]:
        scoring, first, model = ScoreBeforeFit(cache_dir=str(tmp_path)), FirstBatch(), build("gps", **options)
        seed_everything(seed, verbose=False)
        trainer(callbacks=[scoring, first], max_steps=1).fit(model, datamodule=data())
        return scoring.passes, first

    scored, hit = passes(), passes()
    assert (scored[0], hit[0]) == (1, 0)
    # what comes after does not know whether there was a pass
    assert torch.equal(scored[1].pixels, hit[1].pixels)
    assert torch.equal(scored[1].loss, hit[1].loss)
    assert passes(gps_k=2)[0] == 0  # another budget, the same scores
    assert passes(gps_loss="ce")[0] == 1
    assert passes(seed=1)[0] == 1
    assert passes(pretrained=False)[0] == 1
    for file in tmp_path.glob("*.safetensors"):
        file.write_bytes(b"damaged")
    assert passes()[0] == 1


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
    for number, (pixels, labels) in enumerate(alone):
        assert torch.equal(shares[number % 2][number // 2][0], pixels)
        assert torch.equal(shares[number % 2][number // 2][1], labels)
    assert [len(labels) for _, labels in alone] == [5, 5, 5, 5, 4]


def worker(rank: int, port: int, world: int, root: str, weights: str, out: str) -> None:
    """Score with every method that does, on one rank of ``world``."""
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "TORCHELASTIC_RUN_ID": "score"}
    os.environ |= {"GROUP_RANK": "0"}
    torch.set_num_threads(1)
    for method in SCORED:
        for batch_size in (8, 40):  # an uneven last batch of 43, and more ranks than batches
            seed_everything(0, verbose=False)
            model = compose(METHODS[method], task=Classification)(
                backbone=BACKBONE, backbone_args=TINY, pretrained=weights, num_classes=3, **TINY_OPTIONS.get(method, {})
            )
            strategy = "ddp" if world > 1 else "auto"
            run = Trainer(
                accelerator="cpu",
                devices=world,
                strategy=strategy,
                max_steps=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                limit_val_batches=0,
            )
            if method != "gps":
                type(model).score_data = {"batch_size": batch_size}  # type: ignore[assignment]
            data: LightningDataModule = ImageDataset(root=root, batch_size=8, resize="direct", val_split="none")
            run.fit(model, datamodule=data)
            torch.save(model.selection, f"{out}/{method}-{batch_size}-{world}-{rank}.pt")


def test_two_ranks_choose_what_one_chooses(tmp_path: Path, weights: Path) -> None:
    draw = np.random.default_rng(3)
    for index in range(43):
        folder = tmp_path / "images/train" / "abc"[index % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    for world in (1, 2):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        mp.spawn(worker, (port, world, str(tmp_path / "images"), str(weights), str(tmp_path)), nprocs=world)
    for method in SCORED:
        for size in (8, 40):
            one, *two = (
                fingerprint(torch.load(tmp_path / f"{method}-{size}-{world}-{rank}.pt", weights_only=True))
                for world, rank in ((1, 0), (2, 0), (2, 1))
            )
            assert two[0] == two[1] == one, (method, size)
