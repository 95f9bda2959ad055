"""A GPU for machines without one: values of the CPU behind another device, torch's private backend ``pretend``.

Tensors of two devices in one operation raise, as on a GPU. Copies and waits of the host are counted with the line that
asks for them. Autocast has CUDA's lists. Kernels, memory and time of a GPU cannot be tested here.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, distributed
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
ROOT = Path(__file__).resolve().parents[2]
aten = torch.ops.aten
COPIES = (aten.copy_.default, aten._to_copy.default)
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
# operations whose result has a size, or is a number, that the host must know
WAITS = (
    aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.unique_dim.default,
    aten.equal.default, aten.bincount.default, aten._local_scalar_dense.default, aten.is_nonzero.default,
    aten.repeat_interleave.Tensor,
)  # fmt: skip
# CUDA's lists of autocast, as far as a vision backbone and its losses reach
LOWER = (
    aten.linear, aten.matmul, aten.mm, aten.bmm, aten.mv, aten.addmm, aten.addmv, aten.baddbmm, aten.addbmm,
    aten._convolution, aten.conv1d, aten.conv2d, aten.conv_transpose2d, aten.scaled_dot_product_attention, aten.prelu,
)  # fmt: skip
FP32 = (
    aten.layer_norm, aten.native_layer_norm, aten.group_norm, aten.exp, aten.log, aten.rsqrt, aten.reciprocal, aten.pow,
    aten.softplus, aten.logsumexp, aten.nll_loss, aten.kl_div, aten.mse_loss, aten.softmax, aten.log_softmax,
    aten.cosine_similarity, aten.sum, aten.prod, aten.cumsum, aten.linalg_vector_norm, aten.norm,
)  # fmt: skip
WIDEST = (aten.cat, aten.stack, aten.addcmul, aten.index_put, aten.tensordot, aten.scatter_add, aten.dot)


class Module:
    """Functions that torch looks for in ``torch.pretend``."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        values = {"device_count": 1, "current_device": 0, "is_available": True, "_is_in_bad_fork": False}
        values |= {"is_initialized": True, "get_amp_supported_dtype": [torch.bfloat16, torch.float16]}
        return lambda *_, **__: values.get(name)


_setup_privateuseone_for_python_backend(NAME, backend_module=Module())
torch._C._set_only_lift_cpu_tensors(True)  # so that torch.tensor(1, device="pretend") is a copy from the CPU
DEVICE = torch.device(NAME, 0)
events: Counter[tuple[str, str]] = Counter()  # by kind (h2d, d2h or wait) and line


class PretendTensor(Tensor):
    """A tensor on the device ``pretend``; ``values`` is the one on the CPU."""

    values: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: Tensor) -> "PretendTensor":
        shape = {"strides": values.stride(), "storage_offset": values.storage_offset()}
        made = Tensor._make_wrapper_subclass(cls, values.size(), **shape, dtype=values.dtype, device=DEVICE)
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return operate(func, args, kwargs or {})

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, new: Any) -> None:
        Tensor.data.__set__(self, new)
        self.values = new.values

    def tolist(self) -> Any:
        events["wait", line()] += 1
        return self.values.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.values.untyped_storage()

    def __deepcopy__(self, memo: dict[int, Any]) -> "PretendTensor":
        copy = PretendTensor(self.values.detach().clone()).requires_grad_(self.requires_grad)
        copy.__dict__ |= {name: value for name, value in self.__dict__.items() if name != "values"}
        return memo.setdefault(id(self), copy)

    def __reduce_ex__(self, protocol: Any) -> Any:  # a file holds plain tensors
        return self.values.detach().__reduce_ex__(protocol)


def pretends(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def operate(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Result of an operation, after the checks and counts of a GPU."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    here = [t for t in tensors if isinstance(t, PretendTensor)]
    plain = [t for t in tensors if not isinstance(t, PretendTensor)]
    place = kwargs.get("device")
    arrives = pretends(place)
    leaves = bool(here) and place is not None and not arrives
    if func is aten.copy_.default:
        arrives, leaves = isinstance(args[0], PretendTensor), bool(here) and not isinstance(args[0], PretendTensor)
    check(func, args, kwargs, here, plain, arrives and bool(plain), leaves)
    if place is not None and arrives:
        kwargs = kwargs | {"device": torch.device("cpu")}
    args_, kwargs_ = tree_map(lambda t: t.values if isinstance(t, PretendTensor) else t, (args, kwargs))
    if torch.is_inference_mode_enabled():  # tensors of that mode cannot be wrapped
        with torch.inference_mode(False), torch.no_grad():
            out = func(*args_, **kwargs_)
    else:
        out = func(*args_, **kwargs_)
    if func is aten.copy_.default:
        return args[0]
    if leaves or not (here or arrives):
        return out
    given = {id(t.values): t for t in here}  # an operation in place returns its argument
    return tree_map(lambda t: given[id(t)] if id(t) in given else wrapped(t), out)


def wrapped(value: Any) -> Any:
    return PretendTensor(value) if isinstance(value, Tensor) else value


def check(
    func: Any, args: Any, kwargs: dict[str, Any], here: list[Any], plain: list[Tensor], enters: bool, leaves: bool
) -> None:
    """Refuse tensors of two devices; count what makes the host wait."""
    if func.namespace == "c10d":
        if plain and func is not torch.ops.c10d.barrier.default:  # torch makes the tensor of a barrier itself
            raise RuntimeError(f"No backend type associated with device type cpu: {func} at {line()}")
        return
    if func in COPIES:
        if enters:
            events["h2d", line()] += 1
        elif leaves and not kwargs.get("non_blocking"):
            events["d2h", line()] += 1
    elif here and any(t.dim() for t in plain) and func not in INDEXED:
        shapes = ", ".join(f"{t.device.type}{tuple(t.shape)}" for t in (*here, *plain))
        raise RuntimeError(f"Expected all tensors to be on the same device: {func} of {shapes} at {line()}")
    elif here and (func in WAITS or (func in INDEXED and any(is_mask(index) for index in args[1]))):
        events["wait", line()] += 1


def is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def line() -> str:
    """The innermost line of this project's sources on the stack; an empty string if only libraries are on it."""
    frame = sys._getframe()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] not in ("tests", ".venv"):
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""


# autocast


def autocast_kernel(op: Any, cast: str) -> Callable[..., Any]:
    """Kernel of an operation that casts its floating-point arguments first."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
            floats = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.is_floating_point()]
            dtype = {"lower": torch.get_autocast_dtype(NAME), "fp32": torch.float32}.get(cast)
            if cast == "widest":
                dtype = torch.float32 if any(t.dtype is torch.float32 for t in floats) else None
            narrow = [t.dtype for t in floats if t.dtype is not torch.float64]
            wanted = dtype if narrow else None

            def change(t: Any) -> Any:
                fits = isinstance(t, Tensor) and t.is_floating_point() and t.dtype is not torch.float64
                return t.to(wanted) if fits and wanted is not None else t

            args, kwargs = tree_map(change, (args, kwargs))
            return op(*args, **kwargs)

    return kernel


others = torch.library.Library("_", "IMPL")
others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
library = torch.library.Library("aten", "IMPL")
for cast, ops in {"lower": LOWER, "fp32": FP32, "widest": WIDEST}.items():
    for packet in ops:
        for overload in packet.overloads():
            if "out" not in overload and "dimname" not in overload.lower():
                library.impl(
                    f"{packet.__name__}.{overload}".removesuffix(".default"),
                    autocast_kernel(getattr(packet, overload), cast),
                    "AutocastPrivateUse1",
                )


# runs


class Watch(TorchDispatchMode):
    """Makes tensors on ``pretend`` where an operation without such an argument asks for them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return operate(func, args, kwargs or {})


@contextmanager
def pretend() -> Iterator[Counter[tuple[str, str]]]:
    """Context in which tensors can be on ``DEVICE``; gives the counts of events, from zero on."""
    events.clear()
    with Watch():
        yield events


class Accelerator(CPUAccelerator):
    """Accelerator of ``DEVICE``."""

    def setup_device(self, device: torch.device) -> None:
        """Nothing to set up."""


class FirstOfTwo(SingleDeviceStrategy):
    """Strategy of the first of two ranks; inside ``two_ranks`` the other one adds nothing to a collective."""

    is_distributed = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.world_size = 2  # here, because the base sets 1

    reduce, broadcast, all_gather = DDPStrategy.reduce, DDPStrategy.broadcast, DDPStrategy.all_gather  # type: ignore


@contextmanager
def two_ranks(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Context with a process group that takes tensors of ``DEVICE`` alone, as NCCL does; objects stay as they are."""
    patch.setattr(distributed, "broadcast_object_list", lambda objects, *_, **__: None)
    # the other rank has the same objects
    patch.setattr(distributed, "all_gather_object", lambda found, part: found.__setitem__(slice(None), [part, part]))
    distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        yield
    finally:
        distributed.destroy_process_group()


def trainer(precision: Any, kind: type[SingleDeviceStrategy] = SingleDeviceStrategy, **options: Any) -> Trainer:
    """A trainer on ``DEVICE``, with the teardown to the CPU that a GPU run has."""
    quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "logger", "enable_checkpointing"), False)
    strategy = kind(device=DEVICE, accelerator=Accelerator())
    chosen: dict[str, Any] = {"precision": precision}
    if precision.endswith("mixed"):
        # from a scale of 1, because the default of 65536 skips the first steps
        scaler = torch.amp.GradScaler(NAME, init_scale=1.0) if precision == "16-mixed" else None
        chosen = {"plugins": [MixedPrecision(precision, NAME, scaler)]}
    return Trainer(strategy=strategy, **quiet | chosen | options)
