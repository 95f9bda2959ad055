"""Score weights or channels before a fit begins, the same on every rank."""

import hashlib
import os
import random
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed
from lightning import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from callbacks import score_report
from callbacks.cost import peak_memory
from callbacks.delta_file import fingerprint, write_atomically

BUCKET = 64 * 1024**2  # bytes of one all-reduce


class ScoreBeforeFit(Callback):
    """Let a method that chooses weights or channels from data see the data, on the plain backbone.

    Runs in ``setup``, when data and process group are there and neither DDP nor an optimizer is: what is chosen decides
    which parameters come to exist. Batches are defined globally and dealt to the ranks; sums are added; rank 0 selects
    and every rank gets its choice. Random states, modes and gradients are afterwards as they were before. Where the
    weights alone decide (``scorer.needs_data``), no data are read. What was found is drawn into ``scores.png`` and
    listed in ``scores.csv`` beside the run's result, and goes to the loggers.

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
        self.passes, self.images = 0, 0  # passes over data so far, and the images in them
        self.metrics: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if stage != "fit" or getattr(pl_module, "scorer", None) is None or pl_module.selection is not None:
            return
        if self.resume or trainer.ckpt_path is not None or pl_module.init_from is not None:
            return
        self.check_trainer(trainer, pl_module)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        scores = self.cached_scores(trainer, pl_module)
        pl_module.selection = self.select(trainer, pl_module, scores)
        self.report(trainer, pl_module, scores, time.perf_counter() - start)

    def check_trainer(self, trainer: Trainer, pl_module: Any) -> None:
        """Refuse strategies that shard a model, and data that cannot be dealt to the ranks."""
        plain = isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy))
        if not plain or isinstance(trainer.strategy, DeepSpeedStrategy):  # which is a DDPStrategy by inheritance alone
            raise ValueError(f"{type(trainer.strategy).__name__}: scoring before the fit needs one device or DDP")
        if pl_module.score_reads_data and trainer.datamodule is None:  # type: ignore[attr-defined]
            raise ValueError(f"{type(pl_module).__name__} scores before the fit: pass the data as a datamodule")

    # scores

    def cached_scores(self, trainer: Trainer, pl_module: Any) -> dict[str, Tensor]:
        """Scores from the cache if they are there, else from a pass that fills it; on every rank the same."""
        if not pl_module.score_reads_data:
            with pl_module.build_scorer() as scorer:
                scorer.check()
            return {name: total.cpu() for name, total in scorer.sums.items()}
        if self.cache_dir is None:
            return self.scores(trainer, pl_module)
        key = self.key(trainer, pl_module)
        path = Path(self.cache_dir) / f"{pl_module.method_name().lower()}-{key[:16]}.safetensors"
        scores = None
        with all_or_none(trainer):
            if trainer.is_global_zero and path.exists():
                scores = read_scores(path, key)
        if not trainer.strategy.broadcast(scores is not None):
            scores = self.scores(trainer, pl_module)
            with all_or_none(trainer):
                if trainer.is_global_zero:
                    write_atomically(path, lambda file: save_file(scores, file, metadata={"key": key}))
        return scores or {}

    def key(self, trainer: Trainer, pl_module: Any) -> str:
        """What scores depend on: weights, data, and how they are made; not the number of ranks, nor any budget."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        parts = (
            pl_module.score_key(),
            fingerprint(pl_module.backbone.state_dict()),
            str(pl_module.backbone),  # rates of dropout and drop path
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
        count = torch.zeros((), device=pl_module.device)
        with all_or_none(trainer), unchanged(pl_module), torch.enable_grad(), eagerly(pl_module):
            pl_module.train(self.mode == "train")
            for module in pl_module.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()  # its statistics are part of the backbone
            scorer = pl_module.build_scorer()
            batches = data.score_batches(**pl_module.score_data, rank=trainer.global_rank, world=trainer.world_size)
            visible = trainer.is_global_zero and trainer.progress_bar_callback is not None
            with scorer:
                for batch in tqdm(batches, desc="scoring", disable=not visible):
                    self.step(pl_module, scorer, batch)
                    count += 1
        if trainer.world_size > 1:
            torch.distributed.all_reduce(count)
        if not count:
            raise ValueError("the datamodule's score_batches gave no batch on any rank: there is nothing to score with")
        if trainer.world_size > 1:
            # a rank may have had no batch; rank 0 always has the first
            shapes = trainer.strategy.broadcast({name: total.shape for name, total in scorer.sums.items()})
            for name, shape in shapes.items():
                scorer.sums.setdefault(name, torch.zeros(shape, device=pl_module.device))
            add_over_ranks(scorer.sums)
        zero = scorer.check()
        if zero and trainer.is_global_zero:
            shown = ", ".join(zero[:5]) + (f" and {len(zero) - 5} more" if len(zero) > 5 else "")
            warnings.warn(f"all scores are zero in {shown}: the loss does not depend on them", stacklevel=2)
        return {name: total.cpu() for name, total in scorer.sums.items()}

    def step(self, pl_module: Any, scorer: Any, batch: Any) -> None:
        parts = batch if isinstance(batch, (tuple, list)) else ()
        if len(parts) < 2 or not all(isinstance(part, Tensor) for part in parts):
            raise ValueError("a scoring batch has no labels: expected images and labels, two tensors")
        batch = tuple(part.to(pl_module.device) for part in batch)
        batch = pl_module.trainer.datamodule.on_after_batch_transfer(batch, 0)
        scorer.observe(batch[1])
        self.images += len(batch[1])
        with torch.autocast(pl_module.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            loss = pl_module.score_loss(batch)
        if loss is not None:
            if not loss.isfinite():
                bad = [name for name, p in pl_module.named_parameters() if not p.isfinite().all()]
                cause = f"{bad[0]} holds NaN or infinity" if bad else "every weight is finite: look at the images"
                raise ValueError(f"the scoring loss is {float(loss.detach())}: nothing was selected ({cause})")
            scorer.backward(loss)

    # selection

    def select(self, trainer: Trainer, pl_module: Any, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """The choice of rank 0, on every rank."""
        selection = None
        with all_or_none(trainer):
            if trainer.is_global_zero:
                selection = pl_module.select(scores)
        selection = trainer.strategy.broadcast(selection)
        assert selection is not None
        digest = fingerprint(selection)
        of_rank_0 = trainer.strategy.broadcast(digest)
        with all_or_none(trainer):
            if of_rank_0 != digest:
                raise ValueError(f"rank {trainer.global_rank} holds another selection than rank 0")
        return selection

    # report

    def report(self, trainer: Trainer, pl_module: Any, scores: dict[str, Tensor], seconds: float) -> None:
        """Say on rank 0 what was found: a line, a picture, a table, and metrics."""
        folder = Path(str(trainer.log_dir or trainer.default_root_dir))  # asks every rank
        images = int(trainer.strategy.reduce(torch.tensor(self.images, device=pl_module.device), reduce_op="sum"))
        if not trainer.is_global_zero:
            return
        rows = pl_module.scored(scores)
        heads = tuple(f"{name}." for name in pl_module.head_names)
        backbone = sum(p.numel() for n, p in pl_module.backbone.named_parameters() if not n.startswith(heads))
        selected, of, what = sum(row.selected for row in rows), backbone, "parameters of the backbone"
        if any(row.channels is not None for row in rows):
            of, what = sum(row.values.numel() for row in rows), "channels"
        self.metrics = {
            "score/seconds": seconds,
            "score/images": images,
            "score/peak_mem_gib": peak_memory() / 1024**3,
            "score/selected": selected,
            "score/selected_pct": 100 * selected / of,
        }
        source = f"{images:,} images in {seconds:.1f} s" if images else "scores of an earlier pass"
        source = source if pl_module.score_reads_data else "the weights alone"
        title = f"{pl_module.method_name()}: {selected:,} of {of:,} {what} ({100 * selected / of:.2g} %)"
        figure, lines = score_report.draw(rows, title, pl_module.scorer.unit), score_report.table(rows)
        picture = score_report.write(folder, figure, lines)
        memory = f"peak memory {self.metrics['score/peak_mem_gib']:.2f} GiB"
        print(f"selected by {title}, from {source}; {memory}; {picture}", file=sys.stderr)
        for logger in trainer.loggers:
            logger.log_metrics(self.metrics, step=0)
            logger.log_hyperparams({"selection": fingerprint(pl_module.selection)})
        score_report.log(trainer.loggers, figure, picture, lines)


@contextmanager
def all_or_none(trainer: Trainer) -> Iterator[None]:
    """Fail on every rank if one of them fails inside: none waits for another that is gone."""
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    failed = torch.tensor(float(failure is not None), device=trainer.strategy.root_device)
    if trainer.world_size > 1:
        torch.distributed.all_reduce(failed)
    if failure is not None:
        raise failure
    if failed:
        raise ValueError("scoring failed on another rank; its message says why")


def read_scores(path: Path, key: str) -> dict[str, Tensor] | None:
    """The scores of a cache file, or none if it is damaged or not what its name says."""
    problem = "made for another key"
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("key") == key:
                scores = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                if all(score.isfinite().all() for score in scores.values()):
                    return scores
                problem = "holds NaN or infinity"
    except SafetensorError as error:
        problem = str(error)
    warnings.warn(f"{path} is damaged ({problem}); scoring anew", stacklevel=2)
    return None


def eagerly(module: nn.Module) -> AbstractContextManager[Any]:
    """A pass without torch.compile: graphs of the plain backbone would be of no use to the adapted one."""
    compiled = getattr(module, "_compiler_ctx", None) or any(m._compiled_call_impl for m in module.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


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
    """Put random states, modes and flags back afterwards, so that a fit does not depend on how it was scored.

    Raises:
        RuntimeError: If a weight or buffer has another value than before, or a gradient is left.
    """
    module.zero_grad()  # one that was left would be scored
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    sums = {name: checksum(tensor) for name, tensor in tensors.items()}
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    modes = [(m, m.training) for m in module.modules()]
    flags = [(p, p.requires_grad) for p in module.parameters()]
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
        for p, required in flags:
            p.requires_grad_(required)
    for name, tensor in tensors.items():
        if tensor.grad is not None or checksum(tensor) != sums[name]:
            raise RuntimeError(f"scoring must leave the model as it was, but {name} has a gradient or another value")


def checksum(tensor: Tensor) -> int:
    """Sum of a tensor's bit patterns: some hundredths of a second for 100 million parameters."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    if not tensor.numel():
        return 0
    return int(tensor.detach().contiguous().view(integers[tensor.element_size()]).sum(dtype=torch.int64))
