"""What every task shares: a backbone, an optimizer, a schedule, and the four names that a method may ask for."""

import math
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from lightning import Callback
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from backbones.inject import Backbone
from callbacks.ema import EMA
from lightning_modules.optim.adam_atan2 import AdamATan2
from lightning_modules.parameterization import WidthScaled
from lightning_modules.seed import derived_seed


class Headline(NamedTuple):
    """The number that a task is judged by: ``val/<name>`` is monitored, ``test/<name>`` is reported.

    Args:
        name: Name of the metric, such as ``acc1``.
        higher_is_better: Whether a larger value is a better one.
        label: What tables and axes call it, with its unit.
        scale: Factor of the shown value, 100 for shares that are shown as percent.
    """

    name: str
    higher_is_better: bool
    label: str
    scale: float = 1.0

    @property
    def mode(self) -> Literal["max", "min"]:
        """Direction for Lightning's checkpoint and early stopping."""
        return "max" if self.higher_is_better else "min"


class TaskModule(WidthScaled):
    """A frozen or trained backbone with an optimizer; tasks add the head, the loss and the metrics.

    Args:
        optimizer: ``adamw``, ``adam`` or ``sgd`` (momentum 0.9), fused where the device has it; ``adam_atan2`` (AdamW
            without epsilon, arXiv:2407.05872) or ``adafactor`` (steps in proportion to the parameters).
        lr: Peak learning rate, not rescaled by the batch size.
        weight_decay: Decay of trained matrices; vectors (biases, norms, scales) are never decayed.
        warmup_epochs: Epochs of linear warm-up, fractions allowed.
        warmup_lr: Learning rate at the first step of the warm-up.
        min_lr: Learning rate at the end of the cosine.
        ema_decay: Evaluate and save an exponential moving average of what trains; a decay such as 0.999, or none.
        lr_interval: Whether the schedule moves every ``step`` or every ``epoch``, as most papers of the field do.
    """

    headline: ClassVar[Headline]
    unit: ClassVar[str] = "image"  # what speed and scoring count
    links: ClassVar[dict[str, str]] = {}  # option -> attribute of the datamodule that fills it

    backbone: Backbone

    def __init__(
        self,
        optimizer: Literal["adamw", "adam", "sgd", "adam_atan2", "adafactor"] = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        warmup_epochs: float = 0.0,
        warmup_lr: float = 1e-6,
        min_lr: float = 0.0,
        lr_interval: Literal["step", "epoch"] = "step",
        ema_decay: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if lr <= 0:
            raise ValueError(f"lr={lr}: expected a positive learning rate")
        named = {"weight_decay": weight_decay, "warmup_epochs": warmup_epochs, "warmup_lr": warmup_lr, "min_lr": min_lr}
        for name, value in named.items():
            if value < 0:
                raise ValueError(f"{name}={value}: expected 0 or more")
        if ema_decay is not None and not 0 <= ema_decay < 1:
            raise ValueError(f"ema_decay={ema_decay}: expected a decay of at least 0 and below 1, or none")
        self.save_hyperparameters()
        self.optimizer_name = optimizer
        self.lr, self.weight_decay = lr, weight_decay
        self.warmup_epochs, self.warmup_lr, self.min_lr = warmup_epochs, warmup_lr, min_lr
        self.lr_interval = lr_interval
        self.ema = None if ema_decay is None else EMA(ema_decay)

    def configure_callbacks(self) -> list[Callback]:
        return [self.ema] if self.ema is not None else []

    def forward_features(self, x: Tensor) -> Tensor:
        """Features of the backbone, (B, N, C) or (B, C, H, W). Methods that compute otherwise override this."""
        return self.backbone.forward_features(x)

    def mixed_dtypes(self) -> AbstractContextManager[Any]:
        """Autocast for ``bf16-true``, which keeps trained tensors in fp32 beside frozen bf16 ones."""
        if self.dtype is torch.bfloat16:
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()  # autocast(enabled=False) would switch off the one of bf16-mixed

    def prepare(self, batch: Any) -> tuple[Any, Any]:
        """Inputs and targets of the loss, drawn once for a method that runs the model on them more than once."""
        inputs, targets = batch
        return inputs, targets

    def criterion(self, outputs: Any, targets: Any) -> Tensor:
        """Mean loss of what the model says about prepared inputs, a scalar."""
        raise TypeError(f"{type(self).__name__} defines no loss")

    def loss(self, batch: Any) -> Tensor:
        """Mean loss of a batch, a scalar."""
        inputs, targets = self.prepare(batch)
        return self.criterion(self(inputs), targets)

    def extra_loss(self) -> Tensor | None:
        """A term that the method adds to the loss, a scalar."""
        return None

    def on_train_start(self) -> None:
        # a restored optimizer brings the rates and decays of its run along; what this run was told counts
        schedule: Any = self.lr_schedulers()
        for i, (group, told) in enumerate(zip(schedule.optimizer.param_groups, self.param_groups(), strict=True)):
            group["weight_decay"] = told["weight_decay"]
            schedule.base_lrs[i] = group["initial_lr"] = told.get("lr", self.lr)
            group["lr"] = schedule.base_lrs[i] * schedule.lr_lambdas[i](schedule.last_epoch)

    def on_train_epoch_start(self) -> None:
        # drop path, mixup and augmentation depend on the epoch alone: a resumed run draws what an unbroken one would
        seed = derived_seed(self.current_epoch, self.global_rank)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        extra = self.extra_loss()
        if extra is not None:
            self.log("train/extra_loss", extra.detach())
            loss = loss + extra
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def param_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer: trained matrices with weight decay, vectors and scalars without."""
        if self.parameterization != "none":
            return self.width_groups()
        trained = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.squeeze().dim() > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.squeeze().dim() <= 1], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        groups = self.param_groups()
        if not groups:
            raise ValueError(f"{type(self).__name__} has nothing to train")
        optimizer = self.build_optimizer(groups)
        # a plain function leaves no trace in a checkpoint: a run that goes on longer follows its own cosine
        schedule = LambdaLR(optimizer, self.lr_factor())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": self.lr_interval}}

    def build_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        # Lightning unscales fp16 gradients itself, which fused optimizers do not allow
        fused = self.device.type in ("cpu", "cuda", "mps", "xpu") and self.trainer.precision != "16-mixed"
        if self.optimizer_name == "sgd":
            return torch.optim.SGD(groups, lr=self.lr, momentum=0.9, fused=fused)
        if self.optimizer_name == "adam_atan2":
            return AdamATan2(groups, lr=self.lr)
        if self.optimizer_name == "adafactor":
            return torch.optim.Adafactor(groups, lr=self.lr)
        kind = torch.optim.AdamW if self.optimizer_name == "adamw" else torch.optim.Adam
        return kind(groups, lr=self.lr, eps=self.adam_eps, fused=fused)

    def lr_factor(self) -> Callable[[int], float]:
        """Linear warm-up, then a cosine to ``min_lr`` at the last step (or epoch)."""
        steps = int(self.trainer.estimated_stepping_batches)
        epochs = self.trainer.max_epochs if self.trainer.max_epochs and self.trainer.max_epochs > 0 else 1
        total = steps if self.lr_interval == "step" else epochs
        warmup = min(round(self.warmup_epochs * total / epochs), total - 1)

        def factor(step: int) -> float:
            """Share of the peak that holds at a step (or epoch)."""
            if step < warmup:
                start = min(self.warmup_lr, self.lr)
                return (start + (self.lr - start) * step / warmup) / self.lr
            done = min((step - warmup) / max(total - warmup, 1), 1.0)
            return (self.min_lr + (self.lr - self.min_lr) * (1 + math.cos(math.pi * done)) / 2) / self.lr

        return factor
