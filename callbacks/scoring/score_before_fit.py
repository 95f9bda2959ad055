"""Scoring of weights or channels before a fit, with equal results on all ranks."""

import hashlib
import sys
import time
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from callbacks.measures import peak_memory
from callbacks.scoring import report as score_report
from callbacks.scoring.ranks import add_over_ranks, all_or_none
from callbacks.scoring.scorable import Scorable
from callbacks.scoring.scorers import Scorer
from callbacks.scoring.undisturbed import eagerly, unchanged
from checkpoints.atomic import tensor_bytes, write_atomically
from checkpoints.fingerprint import fingerprint
from lightning_modules.batch import Batch
from lightning_modules.run import datamodule_of
from lightning_modules.seed import run_seed


class ScoreBeforeFit(Callback):
    """Scores the plain backbone for a method that chooses weights or channels, and fills its ``selection``.

    It runs in ``setup``, when data and process group exist, but no DDP wrapper and no optimizer. It must run before
    them, because the selection decides which parameters exist. Batches are defined globally and distributed over the
    ranks. The sums of all ranks are added. Rank 0 selects, and every rank gets this selection. Random states, modes and
    gradients are restored. If the scores depend on the weights alone (``scorer.needs_data`` is False), no data are
    read. Results are written to ``scores.png`` and ``scores.csv`` in the run folder and to the loggers.

    Args:
        mode: Mode of the model. ``eval``: without drop path and dropout. ``train``: with both, as in some published
            codes.
        precision: Precision of the pass. ``fp32``: as the weights. ``bf16``: under autocast. Sums are always fp32.
        cache_dir: Folder for scores; other budgets then select without another pass. By default no cache.
        resume: Whether a checkpoint gives the selection, so that nothing is scored. The command line sets it.
    """

    def __init__(
        self,
        mode: Literal["eval", "train"] = "eval",
        precision: Literal["fp32", "bf16"] = "fp32",
        cache_dir: str | None = None,
        resume: bool = False,
    ) -> None:
        self.mode, self.precision, self.cache_dir, self.resume = mode, precision, cache_dir, resume
        self.passes, self.count = 0, 0  # number of passes over data, and of the samples in them
        self.metrics: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" or not isinstance(pl_module, Scorable):
            return
        if pl_module.scorer is None or pl_module.selection is not None:
            return
        if self.resume or trainer.ckpt_path is not None or pl_module.init_from is not None:
            return
        self.check_trainer(trainer, pl_module)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        scores = self.cached_scores(trainer, pl_module)
        pl_module.use_selection(self.select(trainer, pl_module, scores))
        self.report(trainer, pl_module, scores, time.perf_counter() - start)

    def check_trainer(self, trainer: Trainer, pl_module: Scorable) -> None:
        """Refuse strategies that shard a model, and runs without a datamodule.

        Raises:
            ValueError: With the strategy or the class of the model.
        """
        plain = isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy))
        if not plain or isinstance(trainer.strategy, DeepSpeedStrategy):  # a subclass of DDPStrategy, but it shards
            raise ValueError(f"{type(trainer.strategy).__name__}: scoring before the fit needs one device or DDP")
        if pl_module.score_reads_data and datamodule_of(trainer) is None:
            raise ValueError(f"{type(pl_module).__name__} scores before the fit: pass the data as a datamodule")

    # scores

    def cached_scores(self, trainer: Trainer, pl_module: Scorable) -> dict[str, Tensor]:
        """Scores from the cache or, if it has none, from a pass that fills it; equal on all ranks."""
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
                    needed = tensor_bytes(scores.values())
                    write_atomically(path, lambda file: save_file(scores, file, metadata={"key": key}), lambda: needed)
        return scores or {}

    def key(self, trainer: Trainer, pl_module: Scorable) -> str:
        """Cache key of the scores: weights, data and scoring settings, without the number of ranks and the budget."""
        data: Any = datamodule_of(trainer)
        parts = (
            pl_module.score_key(),
            fingerprint(pl_module.backbone.state_dict()),
            str(pl_module.backbone),  # contains the rates of dropout and drop path
            data.score_fingerprint(),
            self.mode,
            self.precision,
            run_seed(),
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def scores(self, trainer: Trainer, pl_module: Scorable) -> dict[str, Tensor]:
        """Run one pass over the scoring batches; returns fp32 sums over all ranks, on the CPU.

        Raises:
            ValueError: If there is no batch, or a score is not finite.
        """
        self.passes += 1
        pl_module.to(trainer.strategy.root_device)
        data: Any = datamodule_of(trainer)
        count = torch.zeros((), device=pl_module.device)
        with all_or_none(trainer), unchanged(pl_module), torch.enable_grad(), eagerly():
            pl_module.train(self.mode == "train")
            for module in pl_module.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()  # so that its statistics, a part of the backbone, do not change
            pl_module.requires_grad_(False)  # also a head beside the backbone; the scorer takes what it needs
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
            # other ranks may have had no batch, but rank 0 always has one
            shapes = trainer.strategy.broadcast({name: total.shape for name, total in scorer.sums.items()})
            for name, shape in shapes.items():
                scorer.sums.setdefault(name, torch.zeros(shape, device=pl_module.device))
            add_over_ranks(scorer.sums)
        zero = scorer.check()
        if zero and trainer.is_global_zero:
            shown = ", ".join(zero[:5]) + (f" and {len(zero) - 5} more" if len(zero) > 5 else "")
            warnings.warn(f"all scores are zero in {shown}: the loss does not depend on them", stacklevel=2)
        return {name: total.cpu() for name, total in scorer.sums.items()}

    def step(self, pl_module: Scorable, scorer: Scorer, batch: Any) -> None:
        if not isinstance(batch, Batch):
            raise ValueError(f"a scoring batch is a {type(batch).__name__}: expected a Batch of inputs, targets, valid")
        batch = move_data_to_device(batch, pl_module.device)
        batch = datamodule_of(pl_module.trainer).on_after_batch_transfer(batch, 0)
        scorer.observe(batch.targets)
        self.count += batch.size
        with torch.autocast(pl_module.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            loss = pl_module.score_loss(batch)
        if loss is not None:
            if not loss.isfinite():
                bad = [name for name, p in pl_module.named_parameters() if not p.isfinite().all()]
                cause = f"{bad[0]} holds NaN or infinity" if bad else "every weight is finite: look at the data"
                raise ValueError(f"the scoring loss is {float(loss.detach())}: nothing was selected ({cause})")
            scorer.backward(loss)

    # selection

    def select(self, trainer: Trainer, pl_module: Scorable, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """Select on rank 0 and send the selection to all ranks."""
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

    def report(self, trainer: Trainer, pl_module: Scorable, scores: dict[str, Tensor], seconds: float) -> None:
        """Report the results on rank 0: a printed line, a picture, a table and metrics."""
        folder = Path(str(trainer.log_dir or trainer.default_root_dir))  # all ranks must call log_dir
        count = int(trainer.strategy.reduce(torch.tensor(self.count, device=pl_module.device), reduce_op="sum"))
        if not trainer.is_global_zero:
            return
        rows = pl_module.score_rows(scores)
        backbone = {f"backbone.{name}": p.numel() for name, p in pl_module.backbone.named_parameters()}
        heads = pl_module.head_prefixes
        total = sum(size for name, size in backbone.items() if not name.startswith(heads))
        selected, of, what = sum(row.selected for row in rows), total, "parameters of the backbone"
        if any(row.channels is not None for row in rows):
            of, what = sum(row.values.numel() for row in rows), "channels"
        self.metrics = {
            "score/seconds": seconds,
            f"score/{pl_module.unit}s": count,
            "score/peak_mem_gib": peak_memory() / 1024**3,
            "score/selected": selected,
            "score/selected_pct": 100 * selected / of,
        }
        source = f"{count:,} {pl_module.unit}s in {seconds:.1f} s" if count else "scores of an earlier pass"
        source = source if pl_module.score_reads_data else "the weights alone"
        title = f"{pl_module.method_name()}: {selected:,} of {of:,} {what} ({100 * selected / of:.2g} %)"
        unit = pl_module.scorer.unit if pl_module.scorer is not None else "score"
        figure, lines = score_report.draw(rows, title, unit), score_report.table(rows)
        picture = score_report.write(folder, figure, lines)
        memory = f"peak memory {self.metrics['score/peak_mem_gib']:.2f} GiB"
        print(f"selected by {title}, from {source}; {memory}; {picture}", file=sys.stderr)
        for logger in trainer.loggers:
            logger.log_metrics(self.metrics, step=0)
            logger.log_hyperparams({"selection": fingerprint(pl_module.selection or {})})
        score_report.log(trainer.loggers, figure, picture, lines)


def read_scores(path: Path, key: str) -> dict[str, Tensor] | None:
    """Scores of a cache file; None, with a warning, if the file is damaged or has another key."""
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
    warnings.warn(f"{path} is damaged ({problem}); scoring again", stacklevel=2)
    return None
