"""Features of a frozen backbone, computed once before a fit instead of at every epoch."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Callback, Trainer
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from safetensors import SafetensorError, safe_open
from timm.layers import DropPath, PatchDropout
from torch import Tensor, nn
from torch.utils.data import Subset
from tqdm import tqdm

from callbacks.features.reusable import ReusableFeatures
from callbacks.scoring.undisturbed import unchanged
from checkpoints.atomic import write_atomically
from checkpoints.fingerprint import fingerprint
from lightning_modules.batch import Features

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # names of the safetensors format
STORED = {"bf16": torch.bfloat16, "fp16": torch.float16}
ABANDONED = 3600  # seconds without a write after which a temporary file is nobody's
Rows = Iterator[tuple[int, tuple[Tensor, ...]]]


class FeatureCache(Callback):
    """Let a method inside whose backbone nothing trains read the backbone's features from memory or disk.

    Of the training and the validation images; test images are computed as they come. A fit over the cache is the one
    without it: features are computed with the batch size, precision and device of the fit. It is refused where they
    would not stay: with augmentation, with drop path or dropout in the backbone, for methods that train in it.

    Args:
        cache: Where features are kept: ``ram``, ``gpu``, ``disk`` (memory-mapped), or ``none`` to compute them anew.
        cache_dir: Folder for files from which later runs on the same images and weights read; ``disk`` needs it.
            Devices share the work then; without it each of them computes everything.
        dtype: What features are stored in: as they are computed (``same``), or rounded to 16 bits in half the space.
    """

    def __init__(
        self,
        cache: Literal["none", "ram", "disk", "gpu"] = "none",
        cache_dir: str | None = None,
        dtype: Literal["same", "bf16", "fp16"] = "same",
    ) -> None:
        if cache == "disk" and cache_dir is None:
            raise ValueError("features.cache=disk needs a folder: give features.cache_dir too")
        self.cache, self.cache_dir, self.dtype = cache, cache_dir, dtype
        self.filled: dict[str, Any] = {}
        self.metrics: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if self.cache == "none" or stage != "fit":
            return
        reason = self.reason_against(trainer, pl_module)
        if reason is not None:
            raise ValueError(f"features.cache={self.cache}: {reason}; or leave the cache out")
        # imported late: datamodules are not needed to import a method
        from datamodules.samples import FrozenFeatures

        splits = trainer.datamodule.splits  # type: ignore[attr-defined]
        kept, widen = [split for split in ("train", "val") if split in splits], self.dtype != "same"
        self.filled = {split: FrozenFeatures(splits[split], widen) for split in kept}
        splits |= self.filled  # empty for now: loaders are made before weights have their device and precision

    def reason_against(self, trainer: Trainer, pl_module: Any) -> str | None:
        """Why features cannot be kept, as far as it is known before the backbone is adapted."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "splits"):
            return "the data must be one of this project's datamodules"
        if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
            return f"{type(trainer.strategy).__name__} splits the backbone; use one device or ddp"
        if self.cache == "gpu" and trainer.strategy.root_device.type == "cpu":
            return "this run is on a CPU; use ram"
        options = {"data.augmentation": data.augmentation, "data.random_erasing": data.random_erasing}
        options["model.mixup or model.cutmix"] = "on" if getattr(pl_module, "mixup", None) is not None else "none"
        changing = [f"{name}={value}" for name, value in options.items() if value not in ("none", 0)]
        if changing:
            return f"{', '.join(changing)} makes other images at every epoch; switch it off"
        if not isinstance(pl_module, ReusableFeatures):
            return f"{pl_module.method_name()} trains in the backbone, whose features change at every step"
        try:
            pl_module.frozen_layers()
        except ValueError as error:
            return str(error)
        return None

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        if not self.filled:
            return
        check_frozen(pl_module)
        start = time.perf_counter()
        with unchanged(pl_module), torch.no_grad():
            pl_module.eval()
            for split, features in self.filled.items():
                features.tensors = self.tensors(trainer, pl_module, split, features.plain)
        size = sum(tensor.nbytes for features in self.filled.values() for tensor in features.tensors)
        self.metrics = {"features/seconds": time.perf_counter() - start, "features/gib": size / 1024**3}
        if trainer.is_global_zero:
            print(f"features: {size / 1e9:.2f} GB in {self.metrics['features/seconds']:.1f} s", file=sys.stderr)
        for logger in trainer.loggers:
            logger.log_metrics(self.metrics, step=0)

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        for split, features in self.filled.items():  # another model must not find the features of this one
            trainer.datamodule.splits[split] = features.plain  # type: ignore[attr-defined]
        self.filled = {}

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    # one split

    def tensors(self, trainer: Trainer, pl_module: Any, split: str, dataset: Any) -> tuple[Tensor, ...]:
        """Features of a split, each of as many rows as it has samples."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        batch_size = min(data.batch_size if split == "train" else data.eval_batch_size, len(dataset))
        shares = (trainer.global_rank, trainer.world_size) if self.cache_dir is not None else (0, 1)
        rows = self.rows(trainer, pl_module, dataset, batch_size, *shares)
        place = trainer.strategy.root_device if self.cache == "gpu" else torch.device("cpu")
        if self.cache_dir is None:
            return in_memory(rows, len(dataset), place)
        key = self.key(trainer, pl_module, split, batch_size)
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        path = Path(self.cache_dir) / f"{split}-{digest[:16]}.safetensors"
        found = read(path, digest) if trainer.is_global_zero else None
        if not trainer.strategy.broadcast(found is not None):
            write_file(trainer, path, rows, len(dataset), {"key": digest} | key)
        found = read(path, digest)
        if found is None:
            raise ValueError(f"{path} is not to be read: several nodes need a cache_dir that all of them see")
        return found if self.cache == "disk" else tuple(tensor.clone().to(place) for tensor in found)

    def key(self, trainer: Trainer, pl_module: Any, split: str, batch_size: int) -> dict[str, str]:
        """All that features depend on, down to their last bits."""
        state = pl_module.backbone.state_dict()
        frozen = [name for name in pl_module.plain_keys if not pl_module.in_head(f"backbone.{name}")]
        plain = {name: tensor for name, tensor in state.items() if name in frozen}
        return {
            "backbone": str(getattr(pl_module, "backbone_name", type(pl_module.backbone).__name__)),
            "backbone_args": repr(sorted(getattr(pl_module, "backbone_args", {}).items())),
            "weights": fingerprint(plain),
            "layers": pl_module.frozen_layers(),
            "split": split,
            "images": trainer.datamodule.fingerprint(split),  # type: ignore[attr-defined]
            "dtype": self.dtype,
            "precision": str(trainer.precision),
            "batch_size": str(batch_size),
            "device": pl_module.device.type,
            "torch": torch.__version__,
        }

    def rows(self, trainer: Trainer, pl_module: Any, dataset: Any, batch_size: int, rank: int, world: int) -> Rows:
        """First row and features of every batch of a share: number rank, rank + world, ..."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        starts = range(rank * batch_size, len(dataset), world * batch_size)
        # whole batches only, as a product of matrices of another shape may round otherwise
        order = [min(start + i, len(dataset) - 1) for start in starts for i in range(batch_size)]
        loader = data.loader(Subset(dataset, order), batch_size)
        shown = trainer.is_global_zero and trainer.progress_bar_callback is not None
        for start, batch in zip(starts, tqdm(loader, desc="features", disable=not shown), strict=True):
            batch = data.on_after_batch_transfer(move_data_to_device(batch, pl_module.device), 0)
            with trainer.precision_plugin.forward_context(), pl_module.mixed_dtypes():
                features = pl_module.frozen_features(batch.inputs)
                again = pl_module(Features(features)) if start == 0 else None
                if again is not None and not torch.allclose(pl_module(batch.inputs), again, atol=1e-3, rtol=1e-3):
                    raise ValueError(f"{type(pl_module.backbone).__name__}: its classifier reads other features")
            stored = STORED.get(self.dtype)
            count = min(batch_size, len(dataset) - start)
            yield start, tuple(f[:count].to(stored or f.dtype).cpu().contiguous() for f in features)


def check_frozen(pl_module: Any) -> None:
    """Refuse a backbone that trains, or that draws at random what it drops.

    Raises:
        ValueError: With the name of the parameter or the module.
    """
    backbone, plain = pl_module.backbone, pl_module.plain_keys
    trained = [name for name, parameter in backbone.named_parameters() if parameter.requires_grad and name in plain]
    names = [name for name in trained if not pl_module.in_head(f"backbone.{name}")]
    added = {name.split(".")[0] for name in backbone.state_dict() if name not in plain}
    rates = ((DropPath, "drop_prob"), (PatchDropout, "prob"), (nn.modules.dropout._DropoutNd, "p"))
    dropping = [
        f"{name} ({type(module).__name__})"
        for name, module in backbone.named_modules()
        for kind, rate in rates
        if isinstance(module, kind) and module.training and getattr(module, rate) and name.split(".")[0] not in added
    ]
    if names or dropping:
        how = f"{names[0]} trains" if names else f"{dropping[0]} drops at random; leave drop rates out"
        raise ValueError(f"features of this backbone change at every step and cannot be kept: {how}")


def in_memory(rows: Rows, count: int, place: torch.device) -> tuple[Tensor, ...]:
    """All rows, without a file."""
    tensors: tuple[Tensor, ...] = ()
    for start, parts in rows:
        tensors = tensors or tuple(part.new_zeros(count, *part.shape[1:], device=place) for part in parts)
        for tensor, part in zip(tensors, parts, strict=True):
            tensor[start : start + len(part)] = part
    return tensors


def read(path: Path, digest: str) -> tuple[Tensor, ...] | None:
    """Memory-mapped features of a file, None if there is none of this key that is whole."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            if file.metadata()["key"] == digest:
                return tuple(file.get_tensor(str(i)) for i in range(len(file.keys())))
    except SafetensorError as error:
        print(f"warning: {path} is damaged ({error}); computing its features anew", file=sys.stderr)
    return None


def write_file(trainer: Trainer, path: Path, rows: Rows, count: int, metadata: dict[str, str]) -> None:
    """Write a safetensors file row by row, every rank its own rows, under its name only once it is whole.

    Raises:
        OSError: If there is no space, or no right to write.
    """

    def share(temporary: Path | None) -> None:
        """Rank 0 lays the file out; then every rank writes."""
        failure: Exception | None = None
        first: list[tuple[int, tuple[Tensor, ...]]] = []
        offsets: list[int] = []
        try:
            if temporary is not None:
                first = [next(rows)]
                offsets = lay_out(temporary, first[0][1], count, metadata)
        except Exception as error:  # told to the other ranks, which would wait for this one
            failure = error
        name, offsets = trainer.strategy.broadcast((str(temporary), offsets))
        try:
            if offsets:
                write_rows(Path(name), chain(first, rows), offsets)
        except Exception as error:
            failure = error
        failed = torch.tensor(float(failure is not None), device=trainer.strategy.root_device)
        failed = trainer.strategy.reduce(failed, reduce_op="sum")
        if isinstance(failure, OSError):
            raise OSError(
                f"features.cache_dir={str(path.parent)!r} cannot take the features ({failure.strerror}); nothing was "
                "kept. Make room, or use another folder, --features.dtype bf16 or --features.cache ram"
            ) from failure
        if failure is not None:
            raise failure
        if failed:
            raise ValueError("features could not be kept on another rank; its message says why")

    if not trainer.is_global_zero:
        share(None)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{path.name}.*"):  # of a run that was killed
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink(missing_ok=True)
        write_atomically(path, share)
    trainer.strategy.barrier()


def lay_out(path: Path, parts: tuple[Tensor, ...], count: int, metadata: dict[str, str]) -> list[int]:
    """Write the header of a safetensors file and reserve the space of its tensors; where each of them begins."""
    sizes = [part[0].nbytes * count for part in parts]
    ends = list(accumulate(sizes))
    header: dict[str, Any] = {"__metadata__": metadata}
    for i, (part, size, end) in enumerate(zip(parts, sizes, ends, strict=True)):
        shape = [count, *part.shape[1:]]
        header[str(i)] = {"dtype": DTYPES[part.dtype], "shape": shape, "data_offsets": [end - size, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    begin = 8 + len(text)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        os.posix_fallocate(file.fileno(), 0, begin + ends[-1])  # a full disk says so now, not after an hour
    return [begin + end - size for size, end in zip(sizes, ends, strict=True)]


def write_rows(path: Path, rows: Iterable[tuple[int, tuple[Tensor, ...]]], offsets: list[int]) -> None:
    with path.open("r+b") as file:
        for start, parts in rows:
            for offset, part in zip(offsets, parts, strict=True):
                file.seek(offset + start * part[0].nbytes)
                file.write(part.flatten().view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())  # the name must not be on the disk before the bytes are
