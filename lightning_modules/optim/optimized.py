"""Optimizer and schedule of a module."""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.optim.decay import Decayed, decay_groups, decays
from lightning_modules.optim.optimizers import OptimizerName, build_optimizer
from lightning_modules.optim.restored import restore_moments
from lightning_modules.optim.schedule import warmup_decay


class Optimized(LightningModule):
    """A module with options for its optimizer and schedule.

    Args:
        optimizer: Optimizer. ``adamw``: AdamW. ``adam``: Adam. ``sgd``: SGD with momentum 0.9. ``adam_atan2``: AdamW
            without epsilon (arXiv:2407.05872). ``adafactor``: Adafactor, with steps in proportion to the parameters.
            The first three are fused if the device has a fused kernel.
        lr: Peak learning rate; it is not rescaled by the batch size.
        weight_decay: Weight decay of the trained parameters that ``decayed`` names.
        decayed: Trained parameters with weight decay. ``matrices``: those with two dimensions or more (dimensions of
            size 1 do not count), so no biases, norms and scales; as in timm. ``all``: all. ``all_but_bias``: all
            without "bias" in their name, as AdamW in VPT's code. ``all_but_norm_and_bias``: the same without the
            weights of norms, as in Hugging Face's trainer. ``all_but_head_bias``: all but the bias of the classifier,
            as SGD in VPT's code.
        adam_eps: Epsilon of ``adamw`` and ``adam``.
        warmup_epochs: Epochs of linear warm-up, fractions allowed.
        warmup_steps: Optimizer steps of linear warm-up, in the place of ``warmup_epochs``, with ``lr_interval`` step.
        warmup_lr: Learning rate at the first step of the warm-up.
        lr_decay: Curve of the learning rate after the warm-up. ``cosine``: half a cosine. ``poly``: a power of the
            share of the run that is left, as in mmsegmentation.
        lr_power: Power of ``poly``; 1 for a line.
        warmup_inside: Whether the decay begins at the first step instead of after the warm-up, as in timm: after 10
            of 100 epochs of warm-up it has done 10 % of its way already.
        min_lr: Learning rate at the end of the decay.
        cooldown_epochs: Epochs at ``min_lr`` after the decay; ``trainer.max_epochs`` includes them. timm's training
            script adds 10 to the epochs that it is given.
        lr_interval: Time between two changes of the learning rate. ``step``: an optimizer step. ``epoch``: an epoch, as
            in most papers of the field.
        lr_late: Whether every change of the learning rate comes one ``lr_interval`` late, so that the first two epochs
            (or steps) have the same, as in code that calls timm's schedule after an epoch with that epoch's number.
    """

    not_options: ClassVar[tuple[str, ...]] = ()  # arguments of ``__init__`` that are not plain data, so not saved

    def __init__(
        self,
        optimizer: OptimizerName = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        decayed: Decayed = "matrices",
        adam_eps: float = 1e-8,
        warmup_epochs: float = 0.0,
        warmup_lr: float = 1e-6,
        warmup_inside: bool = False,
        min_lr: float = 0.0,
        cooldown_epochs: float = 0.0,
        lr_interval: Literal["step", "epoch"] = "step",
        lr_late: bool = False,
        lr_decay: Literal["cosine", "poly"] = "cosine",
        lr_power: float = 1.0,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__()
        if not 0 < lr < math.inf:
            raise ValueError(f"lr={lr}: expected a positive learning rate")
        if not 0 < adam_eps < math.inf:
            raise ValueError(f"adam_eps={adam_eps}: expected a positive number")
        named = {"weight_decay": weight_decay, "warmup_epochs": warmup_epochs, "warmup_lr": warmup_lr, "min_lr": min_lr}
        named |= {"cooldown_epochs": cooldown_epochs, "warmup_steps": warmup_steps}
        for name, value in named.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value}: expected 0 or more")
        if not 0 < lr_power < math.inf or (lr_power != 1 and lr_decay != "poly"):
            raise ValueError(f"lr_power={lr_power}: expected a positive power, with lr_decay poly")
        if warmup_steps and (warmup_epochs or lr_interval != "step"):
            raise ValueError(f"warmup_steps={warmup_steps}: expected lr_interval step and no warmup_epochs beside it")
        self.save_hyperparameters(ignore=self.not_options)
        self.optimizer_name = optimizer
        self.lr, self.weight_decay, self.adam_eps = lr, weight_decay, adam_eps
        self.warmup_epochs, self.warmup_lr, self.min_lr = warmup_epochs, warmup_lr, min_lr
        self.warmup_inside, self.cooldown_epochs = warmup_inside, cooldown_epochs
        self.lr_interval, self.lr_late, self.decayed = lr_interval, lr_late, decayed
        self.lr_decay, self.lr_power, self.warmup_steps = lr_decay, lr_power, warmup_steps

    def on_train_start(self) -> None:
        # use this run's step, learning rates and decays, not those of a restored schedule
        schedule: Any = self.lr_schedulers()
        if self.lr_interval == "step":
            schedule.last_epoch = self.trainer.global_step
        schedule.base_lrs = [0.0] * len(schedule.optimizer.param_groups)
        for i, (group, wanted) in enumerate(zip(schedule.optimizer.param_groups, self.param_groups(), strict=True)):
            group["weight_decay"] = wanted["weight_decay"]
            schedule.base_lrs[i] = group["initial_lr"] = wanted.get("lr", self.lr)
            group["lr"] = schedule.base_lrs[i] * schedule.lr_lambdas[i](schedule.last_epoch)

    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups: trained parameters with weight decay, and those without."""
        trained = {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}
        return decay_groups(trained, self.weight_decay, self.decays)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether a trained parameter has weight decay."""
        return decays(self.decayed, name, parameter, self, self.in_head(name))

    @property
    def head_prefixes(self) -> tuple[str, ...]:
        """Prefixes of the names of parameters and buffers of the heads; a module without heads has none."""
        return ()

    def in_head(self, name: str) -> bool:
        """Whether a parameter or buffer of this module, such as ``backbone.head.weight``, belongs to a head."""
        return name.startswith(self.head_prefixes)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        groups = self.param_groups()
        if not groups:
            raise ValueError(f"{type(self).__name__} has nothing to train")
        optimizer = self.build_optimizer(groups)
        optimizer.register_load_state_dict_pre_hook(restore_moments)
        # a checkpoint does not save plain functions, so a resumed run with more epochs follows its own schedule
        schedule = LambdaLR(optimizer, self.lr_factors())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": self.lr_interval}}

    def build_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Optimizer of this run for parameter groups."""
        # Lightning unscales fp16 gradients itself, and refuses to clip those of a fused optimizer under autocast
        precision, clips = str(self.trainer.precision), bool(self.trainer.gradient_clip_val)
        unfused = precision == "16-mixed" or (precision == "bf16-mixed" and clips)
        fused = self.device.type in ("cpu", "cuda", "mps", "xpu") and not unfused
        return build_optimizer(self.optimizer_name, groups, self.lr, self.adam_eps, fused)

    def lr_factors(self) -> Callable[[int], float] | list[Callable[[int], float]]:
        """Schedule of the learning rate: one function of the step (or epoch) for all groups, or one for each group."""
        return self.lr_factor()

    def lr_factor(self) -> Callable[[int], float]:
        """Function of the step (or epoch): linear warm-up, then the decay to ``min_lr`` at the last step (or epoch)."""
        steps = int(self.trainer.estimated_stepping_batches)
        epochs = self.trainer.max_epochs if self.trainer.max_epochs and self.trainer.max_epochs > 0 else 1
        count = steps if self.lr_interval == "step" else epochs
        return warmup_decay(
            count,
            self.warmup_steps or round(self.warmup_epochs * count / epochs),
            lr=self.lr,
            warmup_lr=self.warmup_lr,
            min_lr=self.min_lr,
            inside=self.warmup_inside,
            cooldown=round(self.cooldown_epochs * count / epochs),
            late=self.lr_late,
            power=self.lr_power if self.lr_decay == "poly" else None,
        )
