"""Score weights or channels before a fit begins, the same on every rank."""

import hashlib
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed
from lightning import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from callbacks.delta_file import fingerprint, write_atomically

BUCKET = 64 * 1024**2  # bytes of one all-reduce


class ScoreBeforeFit(Callback):
    """Let a method that chooses weights or channels from data see the data, on the plain backbone.

    Runs in ``setup``, when data and process group are there and neither DDP nor an optimizer is: what is chosen decides
    which parameters come to exist. Batches are defined globally and dealt to the ranks; sums are added; rank 0 selects
    and every rank gets its choice. Random states, modes and gradients are afterwards as they were before.

    Args:
        mode: ``eval`` scores without drop path and dropout; ``train`` as some of the published codes do.
        precision: ``bf16`` scores under autocast; sums are fp32 in any case.
        cache_dir: Folder for scores, from which other budgets select without another pass; none by default.
        resume: Whether a checkpoint will bring its selection, so that nothing is scored; the command line says so.
    """

    def __init__(
        self,
        mode: Literal["eval", "train"] = "eval",
        precision: Literal["fp32", "bf16"] = "fp32",
        cache_dir: str | None = None,
        resume: bool = False,
    ) -> None:
        self.mode, self.precision, self.cache_dir, self.resume = mode, precision, cache_dir, resume
        self.passes = 0  # passes over data so far
        self.metrics: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if stage != "fit" or getattr(pl_module, "scorer", None) is None or pl_module.selection is not None:
            return
        if self.resume or trainer.ckpt_path is not None:
            return
        if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
            raise ValueError(f"{type(trainer.strategy).__name__}: scoring before the fit needs one device or DDP")
        if trainer.datamodule is None:  # type: ignore[attr-defined]
            raise ValueError(f"{type(pl_module).__name__} scores before the fit: pass the data as a datamodule")
        start = time.perf_counter()
        scores = self.cached_scores(trainer, pl_module)
        pl_module.selection = self.select(trainer, pl_module, scores)
        self.metrics = {"score/seconds": time.perf_counter() - start}
        if trainer.is_global_zero:
            print(f"scored and selected in {self.metrics['score/seconds']:.1f} s", file=sys.stderr)
        for logger in trainer.loggers:
            logger.log_metrics(self.metrics, step=0)

    # scores

    def cached_scores(self, trainer: Trainer, pl_module: Any) -> dict[str, Tensor]:
        """Scores from the cache if they are there, else from a pass that fills it; on every rank the same."""
        if self.cache_dir is None:
            return self.scores(trainer, pl_module)
        path = (
            Path(self.cache_dir) / f"{pl_module.method_name().lower()}-{self.key(trainer, pl_module)[:16]}.safetensors"
        )
        scores = None
        if trainer.is_global_zero and path.exists():
            try:
                scores = load_file(path)
            except SafetensorError as error:
                print(f"warning: {path} is damaged ({error}); scoring anew", file=sys.stderr)
        if not trainer.strategy.broadcast(scores is not None):
            scores = self.scores(trainer, pl_module)
            if trainer.is_global_zero:
                write_atomically(path, lambda file: save_file(scores, file))
        return scores or {}

    def key(self, trainer: Trainer, pl_module: Any) -> str:
        """What scores depend on: weights, data, and how they are made; not the number of ranks, nor any budget."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        parts = (
            pl_module.score_key(),
            fingerprint(pl_module.backbone.state_dict()),
            data.score_fingerprint(),
            self.mode,
            self.precision,
            os.environ.get("PL_GLOBAL_SEED"),
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def scores(self, trainer: Trainer, pl_module: Any) -> dict[str, Tensor]:
        """One pass over the scoring batches; fp32 sums over all ranks, on the CPU."""
        self.passes += 1
        pl_module.to(trainer.strategy.root_device)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        failure: Exception | None = None
        scorer = None
        with unchanged(pl_module), torch.enable_grad():
            pl_module.train(self.mode == "train")
            try:
                scorer = pl_module.build_scorer()
                batches = data.score_batches(**pl_module.score_data, rank=trainer.global_rank, world=trainer.world_size)
                shown = trainer.is_global_zero and trainer.progress_bar_callback is not None
                with scorer:
                    for batch in tqdm(batches, desc="scoring", disable=not shown):
                        self.step(pl_module, scorer, batch)
            except Exception as error:  # told to the other ranks, which would wait for this one
                failure = error
        failed = torch.tensor(float(failure is not None), device=pl_module.device)
        if trainer.world_size > 1:
            torch.distributed.all_reduce(failed)
        if failure is not None:
            raise failure
        if failed or scorer is None:
            raise ValueError("scoring failed on another rank; its message says why")
        if trainer.world_size > 1:
            # a rank may have had no batch; rank 0 always has the first
            shapes = trainer.strategy.broadcast({name: total.shape for name, total in scorer.sums.items()})
            for name, shape in shapes.items():
                scorer.sums.setdefault(name, torch.zeros(shape, device=pl_module.device))
            add_over_ranks(scorer.sums)
        scorer.check()
        return {name: total.cpu() for name, total in scorer.sums.items()}

    def step(self, pl_module: Any, scorer: Any, batch: Any) -> None:
        batch = tuple(part.to(pl_module.device) for part in batch)
        batch = pl_module.trainer.datamodule.on_after_batch_transfer(batch, 0)
        scorer.observe(batch[1])
        with torch.autocast(pl_module.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            loss = pl_module.score_loss(batch)
        if loss is not None:
            if not loss.isfinite():
                raise ValueError(f"the scoring loss is {float(loss.detach())}: nothing was selected")
            loss.backward()

    # selection

    def select(self, trainer: Trainer, pl_module: Any, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """The choice of rank 0, on every rank."""
        failure, selection = None, None
        if trainer.is_global_zero:
            try:
                selection = pl_module.select(scores)
            except ValueError as error:
                failure = str(error)
        failure = trainer.strategy.broadcast(failure)
        if failure is not None:
            raise ValueError(failure)
        selection = trainer.strategy.broadcast(selection)
        assert selection is not None
        digest = fingerprint(selection)
        if trainer.strategy.broadcast(digest) != digest:
            raise ValueError(f"rank {trainer.global_rank} holds another selection than rank 0")
        return selection


def add_over_ranks(sums: dict[str, Tensor]) -> None:
    """Add the sums of all ranks, in place, a bucket of tensors at a time."""
    names: list[str] = []
    for name in [*sorted(sums), None]:
        full = names and (name is None or sum(sums[n].numel() * 4 for n in names) + sums[name].numel() * 4 > BUCKET)
        if full:
            flat = torch.cat([sums[n].flatten() for n in names])
            torch.distributed.all_reduce(flat)
            for n, part in zip(names, flat.split([sums[n].numel() for n in names]), strict=True):
                sums[n].copy_(part.view_as(sums[n]))
            names = []
        if name is not None:
            names.append(name)


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Put random states and training modes back afterwards, so that a fit does not depend on how it was scored."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    modes = [(m, m.training) for m in module.modules()]
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        for m, training in modes:
            m.training = training
