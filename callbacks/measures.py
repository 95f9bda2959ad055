"""Measures of memory and compute: saved activations, peak memory, FLOPs."""

import resource
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from backbones.evaluating import evaluating
from callbacks.scoring.undisturbed import eagerly
from lightning_modules.task import Task


class SavedBytes:
    """Counts the bytes that autograd saves inside a ``with`` block: unique storages without parameters and buffers.

    Example:
        >>> with SavedBytes(model) as saved:
        ...     loss = model(images).sum()
        >>> saved.bytes

    Args:
        module: Module; its parameters and buffers are not counted.
    """

    def __init__(self, module: nn.Module) -> None:
        tensors: Iterable[Tensor] = [*module.parameters(), *module.buffers()]
        self.own = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        self.storages: dict[int, tuple[torch.dtype, int]] = {}  # dtype and bytes by address
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor)

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.own:
            self.storages[storage.data_ptr()] = (tensor.dtype, storage.nbytes())
        return tensor.detach()  # otherwise a reference cycle leaks the graph

    @property
    def bytes(self) -> int:
        return sum(count for _, count in self.storages.values())

    def bytes_of(self, dtype: torch.dtype) -> int:
        """Bytes of tensors of one dtype."""
        return sum(count for kind, count in self.storages.values() if kind is dtype)

    def __enter__(self) -> "SavedBytes":
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.hooks.__exit__(*error)


def peak_bytes(work: Callable[[], Any], device: str = "cpu") -> int:
    """Peak of the bytes of tensors that ``work`` allocates, without those that were allocated before.

    On a CPU it is computed from the allocations in torch's profiler, because the size of the process also depends on
    the system's allocator.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = largest = 0
    for _, change in changes:
        held += change
        largest = max(largest, held)
    return largest


def flop_counter() -> FlopCounterMode:
    """Counter of the FLOPs of operations inside its context."""
    # torch 2.11 does not count the attention kernel of CPUs
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    formula = {attention: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}
    return FlopCounterMode(display=False, custom_mapping=formula)


def forward_gflops(task: Task) -> float:
    """GFLOP of the forward pass of one sample, counted while it runs."""
    counter = flop_counter()
    with evaluating(task), torch.no_grad(), counter, eagerly():
        task.example_outputs()
    return counter.get_total_flops() / 1e9


def reset_peak_memory() -> None:
    """Reset ``peak_memory``, so that earlier runs of this process are not included."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        with suppress(OSError):  # some containers forbid this write
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Peak of the bytes allocated on the GPU since the last reset; without a GPU, peak size of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
