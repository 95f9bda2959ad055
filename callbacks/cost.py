"""Costs of a run: parameters, storage, compute, memory and speed."""

import time
from contextlib import ExitStack
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from callbacks.measures import SavedBytes, flop_counter, forward_gflops, peak_memory, reset_peak_memory
from callbacks.scoring.undisturbed import eagerly
from lightning_modules.adapted import AdaptedTask
from lightning_modules.batch import Batch


class Cost(Callback):
    """Measures the costs of a fit; ``values`` holds the numbers by the names of their metrics.

    - ``cost/trainable_params``: number of trained parameters;
    - ``cost/trainable_params_method``, ``..._neck``, ``..._head``: numbers of trained parameters of these parts;
    - ``cost/trainable_pct``: trained parameters in percent of all parameters;
    - ``cost/storage_bytes``: size of the delta, in packed form if the method has a packed file;
    - ``cost/gflops``: one forward pass of one sample, multiply-adds counted as two; if it depends on the sample, the
      mean over the split that was evaluated last;
    - ``cost/saved_mib``: activations that autograd keeps between the forward and backward pass of the first batch; not
      if the model is sharded;
    - ``cost/images_per_s`` (or another unit of the task, such as tokens): training speed of all devices together,
      without evaluation and, if there are several epochs, without the first one;
    - ``cost/peak_mem_gib``: the largest allocation on this GPU or, on a CPU, the largest size of the process.
    """

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.samples: float | Tensor = 0
        self.seconds, self.start = 0.0, 0.0
        self.counter: FlopCounterMode | None = None  # active during the forward pass of an evaluation batch
        self.counting = ExitStack()  # of the counter
        self.flops, self.evaluated = 0, 0
        self.saved: SavedBytes | None = None  # active during the forward pass of the first training batch

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reset_peak_memory()
        task = cast(AdaptedTask, pl_module)
        counts = task.parameter_counts()
        trained = sum(counts.values())
        self.values = {
            "cost/trainable_params": trained,
            **{f"cost/trainable_params_{part}": count for part, count in counts.items()},
            "cost/trainable_pct": 100 * trained / task.total_parameters,
            "cost/storage_bytes": task.storage_bytes(),
        }
        if not task.input_dependent:
            self.values["cost/gflops"] = forward_gflops(task)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start, self.epoch_samples = time.perf_counter(), cast(float | Tensor, 0)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        # not of a sharded model, because the whole weights that its blocks have for a moment would count too; nor where
        # no gradient is computed
        counts = pl_module.automatic_optimization and not isinstance(trainer.strategy, ModelParallelStrategy)
        if "cost/saved_mib" not in self.values and counts:
            self.saved = SavedBytes(pl_module).__enter__()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self.saved is not None:
            self.saved.__exit__(None, None, None)
            self.values["cost/saved_mib"] = self.saved.bytes / 2**20
            self.saved = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.epoch_samples += cast(AdaptedTask, pl_module).amount(batch) * trainer.world_size
        if trainer.is_last_batch:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if trainer.current_epoch == 1 and trainer.max_epochs != 1:
                self.samples, self.seconds = 0, 0.0  # without the first epoch, because it includes start-up time
            self.samples += self.epoch_samples
            self.seconds += time.perf_counter() - self.start

    def reset_count(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.flops, self.evaluated = 0, 0

    def start_count(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int, *args: Any
    ) -> None:
        if cast(AdaptedTask, pl_module).input_dependent:
            self.counter = self.counting.enter_context(flop_counter())
            self.counting.enter_context(eagerly())  # a compiled graph hides its operations from the counter

    def stop_count(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int, *_: Any
    ) -> None:
        if self.counter is not None:
            self.counting.close()
            self.flops += self.counter.get_total_flops()
            self.evaluated += batch.size * cast(AdaptedTask, pl_module).passes(batch)
            self.counter = None

    def report_count(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if cast(AdaptedTask, pl_module).input_dependent:
            sums = torch.tensor([self.flops, self.evaluated], dtype=torch.float32, device=pl_module.device)
            flops, samples = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
            self.values["cost/gflops"] = flops / samples / 1e9

    on_validation_epoch_start = on_test_epoch_start = reset_count
    on_validation_batch_start = on_test_batch_start = start_count  # type: ignore[assignment]
    on_validation_batch_end = on_test_batch_end = stop_count  # type: ignore[assignment]
    on_validation_epoch_end = on_test_epoch_end = report_count

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.counting.close()
        self.counter = None
        if self.saved is not None:
            self.saved.__exit__(None, None, None)
            self.saved = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        task = cast(AdaptedTask, pl_module)
        if task.one_pass:  # what it keeps depends on the number of training samples
            self.values["cost/storage_bytes"] = task.storage_bytes()
        if self.seconds:
            self.values[f"cost/{task.speed_unit or task.unit}s_per_s"] = float(self.samples) / self.seconds
        self.values["cost/peak_mem_gib"] = peak_memory() / 1024**3
        for logger in trainer.loggers:
            logger.log_metrics(self.values, step=trainer.global_step)
