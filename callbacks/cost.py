"""What a run costs: parameters, storage, compute, memory and speed."""

import resource
import sys
import time
from typing import Any

import torch
from lightning import Callback, Trainer
from torch.utils.flop_counter import FlopCounterMode


class Cost(Callback):
    """Measure what a fit costs; ``values`` holds the numbers under their metric names.

    ``cost/trainable_params`` and ``cost/trainable_params_no_head`` count parameters, ``cost/storage_bytes`` the
    tensors of a checkpoint, ``cost/gflops`` one forward pass of one image (multiply-adds counted as two),
    ``cost/images_per_s`` training on all devices without evaluation (first epoch left out if there are more),
    ``cost/peak_mem_gib`` the largest allocation on this GPU or, on a CPU, the largest size of the process.
    """

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.images, self.seconds, self.start = 0, 0.0, 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        no_head, trained = pl_module.parameter_counts()
        delta = pl_module.delta_state_dict().values()
        self.values = {
            "cost/trainable_params": trained,
            "cost/trainable_params_no_head": no_head,
            "cost/trainable_pct": 100 * trained / pl_module.total_parameters,
            "cost/storage_bytes": sum(t.numel() * t.element_size() for t in delta),
            "cost/gflops": forward_gflops(pl_module),
        }

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.start, self.epoch_images = time.perf_counter(), 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.epoch_images += len(batch[0]) * trainer.world_size
        if trainer.is_last_batch:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if trainer.current_epoch == 1 and trainer.max_epochs != 1:
                self.images, self.seconds = 0, 0.0  # the first epoch held start-up work
            self.images += self.epoch_images
            self.seconds += time.perf_counter() - self.start

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        if self.seconds:
            self.values["cost/images_per_s"] = self.images / self.seconds
        self.values["cost/peak_mem_gib"] = peak_memory() / 1024**3
        for logger in trainer.loggers:
            logger.log_metrics(self.values, step=trainer.global_step)


def forward_gflops(pl_module: Any) -> float:
    """GFLOP of the forward pass of one image, counted from what runs."""
    training, counter = pl_module.training, FlopCounterMode(display=False)
    pl_module.eval()
    with torch.no_grad(), counter:
        pl_module(pl_module.example_input())
    pl_module.train(training)
    return counter.get_total_flops() / 1e9


def peak_memory() -> int:
    """Largest number of bytes allocated so far on the GPU, or resident in this process without one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
