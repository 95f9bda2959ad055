"""Features of a frozen backbone, computed once before a fit instead of in every epoch."""

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Literal, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from timm.layers import DropPath, PatchDropout
from torch import Tensor, nn
from torch.utils.data import Subset
from tqdm import tqdm

from callbacks.features import file
from callbacks.features.dataset import FrozenFeatures
from callbacks.features.file import Rows
from callbacks.features.reusable import ReusableFeatures
from callbacks.scoring.undisturbed import eagerly, unchanged
from checkpoints.fingerprint import fingerprint
from datamodules.base import DataModule
from lightning_modules.adapted import AdaptedTask
from lightning_modules.batch import Features
from lightning_modules.run import datamodule_of

Share = tuple[int, int]  # rank and number of ranks
STORED = {"bf16": torch.bfloat16, "fp16": torch.float16}


class FeatureCache(Callback):
    """Feed a method that trains nothing inside the backbone from memory or disk instead of through the backbone.

    Features of the training and the validation samples are cached; those of the test are computed as they come. A fit
    over the cache gives the numbers of a fit without it, because features are computed with the batch size, precision
    and device of the fit. The cache is refused if features would change between epochs: with augmentation, with drop
    path or dropout in the backbone, and for methods that train inside the backbone.

    Args:
        cache: Place of the features: ``ram``; ``gpu``; ``disk``, mapped into memory; ``none`` computes them again in
            every epoch.
        cache_dir: Folder of feature files, which later runs on the same samples and weights read. ``disk`` needs it.
            With it, devices share the work; without it, each device computes all features.
        dtype: Type of stored features: ``same`` keeps that of the computation, ``bf16`` and ``fp16`` round to 16 bits
            and need half the space.
    """

    def __init__(
        self,
        cache: Literal["none", "ram", "disk", "gpu"] = "none",
        cache_dir: str | None = None,
        dtype: Literal["same", "bf16", "fp16"] = "same",
    ) -> None:
        if cache == "disk" and cache_dir is None:
            raise ValueError("features.cache=disk needs a folder: give features.cache_dir too")
        self.cache = cache
        self.cache_dir = cache_dir
        self.dtype = dtype
        self.datasets: dict[str, FrozenFeatures] = {}
        self.metrics: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.cache == "none" or stage != "fit":
            return
        reason = self.reason_against(trainer, pl_module)
        if reason is not None:
            raise ValueError(f"features.cache={self.cache}: {reason}; or leave the cache out")
        data: DataModule = datamodule_of(trainer)
        for split in ("train", "val"):
            if split in data.splits:
                # empty for now, because loaders are made before weights have their device and precision
                self.datasets[split] = FrozenFeatures(data.splits[split], data.collate, self.dtype != "same")
                data.replace(split, self.datasets[split])

    def reason_against(self, trainer: Trainer, pl_module: LightningModule) -> str | None:
        """Reason why features cannot be kept, if it shows before the backbone is adapted."""
        data = datamodule_of(trainer)
        if not isinstance(data, DataModule):
            return "the data must be one of this project's datamodules"
        if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
            return f"{type(trainer.strategy).__name__} splits the backbone; use one device or ddp"
        if self.cache == "gpu" and trainer.strategy.root_device.type == "cpu":
            return "this run is on a CPU; use ram"
        mixed = getattr(pl_module, "mixup", None) is not None
        changing = [*data.varies(), *(["model.mixup or model.cutmix=on"] if mixed else [])]
        if changing:
            return f"{', '.join(changing)} makes other {data.unit}s at every epoch; switch it off"
        if not isinstance(pl_module, ReusableFeatures):
            name = cast(AdaptedTask, pl_module).method_name()
            return f"{name} trains in the backbone, whose features change at every step"
        try:
            pl_module.frozen_layers()
        except ValueError as error:
            return str(error)
        return None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.datasets:
            return
        model = cast(ReusableFeatures, pl_module)
        check_frozen(model)
        start = time.perf_counter()
        with unchanged(pl_module), torch.no_grad(), eagerly():
            pl_module.eval()
            for split, features in self.datasets.items():
                features.tensors = self.tensors(trainer, model, split, features)
        size = sum(tensor.nbytes for features in self.datasets.values() for tensor in features.tensors)
        self.metrics = {"features/seconds": time.perf_counter() - start, "features/gib": size / 1024**3}
        if trainer.is_global_zero:
            print(f"features: {size / 1e9:.2f} GB in {self.metrics['features/seconds']:.1f} s", file=sys.stderr)
        for logger in trainer.loggers:
            logger.log_metrics(self.metrics, step=0)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.datasets:
            datamodule_of(trainer).restore()  # otherwise another model would read the features of this one
        self.datasets = {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    # one split

    def tensors(
        self, trainer: Trainer, model: ReusableFeatures, split: str, features: FrozenFeatures
    ) -> tuple[Tensor, ...]:
        """Features of a split, each with as many rows as the split has samples."""
        data: DataModule = datamodule_of(trainer)
        batch_size = min(data.batch_size if split == "train" else data.eval_batch_size, len(features))
        share = (trainer.global_rank, trainer.world_size) if self.cache_dir is not None else (0, 1)
        rows = self.rows(trainer, model, features, batch_size, share)
        place = trainer.strategy.root_device if self.cache == "gpu" else torch.device("cpu")
        if self.cache_dir is None:
            return in_memory(rows, len(features), place)
        key = self.key(trainer, model, split, batch_size)
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        path = Path(self.cache_dir) / f"{split}-{digest[:16]}.safetensors"
        found = file.read(path, digest) if trainer.is_global_zero else None
        if not trainer.strategy.broadcast(found is not None):
            file.write(trainer, path, rows, len(features), {"key": digest} | key)
        found = file.read(path, digest)
        if found is None:
            raise ValueError(f"{path} is not to be read: several nodes need a cache_dir that all of them see")
        return found if self.cache == "disk" else tuple(tensor.clone().to(place) for tensor in found)

    def key(self, trainer: Trainer, model: ReusableFeatures, split: str, batch_size: int) -> dict[str, str]:
        """All that features depend on, down to their last bits."""
        heads = model.head_prefixes
        frozen = {name for name in model.plain_keys or () if not f"backbone.{name}".startswith(heads)}
        plain = {name: tensor for name, tensor in model.backbone.state_dict().items() if name in frozen}
        return {
            "backbone": str(getattr(model, "backbone_name", type(model.backbone).__name__)),
            "backbone_args": repr(sorted(getattr(model, "backbone_args", {}).items())),
            "weights": fingerprint(plain),
            "layers": model.frozen_layers(),
            "split": split,
            "images": datamodule_of(trainer).fingerprint(split),
            "dtype": self.dtype,
            "precision": str(trainer.precision),
            "batch_size": str(batch_size),
            "device": model.device.type,
            "torch": torch.__version__,
        }

    def rows(
        self,
        trainer: Trainer,
        model: ReusableFeatures,
        features: FrozenFeatures,
        batch_size: int,
        share: tuple[int, int],
    ) -> Rows:
        """First row and features of every batch of a share (rank, world): batches ``rank``, ``rank + world``, ..."""
        data: DataModule = datamodule_of(trainer)
        rank, world = share
        starts = range(rank * batch_size, len(features), world * batch_size)
        # whole batches only, because a product of matrices of another shape may round otherwise
        order = [min(start + i, len(features) - 1) for start in starts for i in range(batch_size)]
        loader = data.loader(Subset(features.plain, order), batch_size)
        shown = trainer.is_global_zero and trainer.progress_bar_callback is not None
        for start, batch in zip(starts, tqdm(loader, desc="features", disable=not shown), strict=True):
            inputs = data.on_device(move_data_to_device(batch, model.device)).inputs
            with trainer.precision_plugin.forward_context(), model.mixed_dtypes():
                parts = model.frozen_features(inputs)
                again = model(Features(parts)) if start == 0 else None
                if again is not None and not torch.allclose(model(inputs), again, atol=1e-3, rtol=1e-3):
                    raise ValueError(f"{type(model.backbone).__name__}: its classifier reads other features")
            stored = STORED.get(self.dtype)
            count = min(batch_size, len(features) - start)
            yield start, tuple(f[:count].to(stored or f.dtype).cpu().contiguous() for f in parts)


def check_frozen(model: ReusableFeatures) -> None:
    """Refuse a backbone that trains, or that drops something at random.

    Raises:
        ValueError: With the name of the parameter or the module.
    """
    backbone, plain = model.backbone, model.plain_keys or frozenset()
    trained = [name for name, parameter in backbone.named_parameters() if parameter.requires_grad and name in plain]
    heads = model.head_prefixes
    names = [name for name in trained if not f"backbone.{name}".startswith(heads)]
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
    """Tensors of ``count`` rows, filled from successive batches, on the device ``place``."""
    tensors: tuple[Tensor, ...] = ()
    for start, parts in rows:
        tensors = tensors or tuple(part.new_zeros(count, *part.shape[1:], device=place) for part in parts)
        for tensor, part in zip(tensors, parts, strict=True):
            tensor[start : start + len(part)] = part
    return tensors
