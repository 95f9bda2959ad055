"""Exponential moving average of the trained parameters."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from checkpoints.whole import shard_like, whole


class EMA(Callback):
    """Average the trained parameters over steps; evaluation and checkpoints use the average.

    Only trained tensors are held twice. A checkpoint's ``state_dict`` is the average. It holds the raw values beside it
    as ``raw``, because a resumed run goes on from those, and the decay as ``ema_decay``.

    Args:
        decay: Weight of the old average at each step, 0.999 for an average over about 1,000 steps. None keeps no
            average.
    """

    def __init__(self, decay: float | None = None) -> None:
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"ema.decay={decay}: expected a decay of at least 0 and below 1, or none")
        self.decay = decay
        self.update = get_ema_multi_avg_fn(decay or 0.0)
        self.average: dict[str, Tensor] = {}
        self.raw: dict[str, Tensor] = {}  # of a restored checkpoint, until the fit goes on

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.decay is None:
            return
        trained = self.trained(pl_module)
        if self.raw and self.raw.keys() != trained.keys():
            other = sorted(self.raw.keys() ^ trained.keys())[0]
            raise ValueError(
                f"ckpt_path: its 'raw' and the trained parameters of this run differ in {other}. Begin a new fit with "
                "the averaged values, --model.init_from PATH"
            )
        self.average = {name: p.detach().clone() for name, p in trained.items()}
        for name, value in self.raw.items():  # resumed: the module has loaded the average
            trained[name].data.copy_(shard_like(value, trained[name]))
        self.raw = {}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.average:
            return
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch:
            current = [p.detach() for p in self.trained(pl_module).values()]
            self.update(list(self.average.values()), current, trainer.global_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.average and not trainer.sanity_checking:
            self.swap(pl_module, self.average)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.average and not trainer.sanity_checking:
            self.swap(pl_module, self.average)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.decay is None:
            return
        checkpoint["ema_decay"] = self.decay
        checkpoint["raw"] = {name: checkpoint["state_dict"][name] for name in self.average}
        checkpoint["state_dict"] |= whole(self.average)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.raw = checkpoint.get("raw", {})

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.average:
            self.swap(pl_module, self.average)  # the module keeps the values that were reported

    @staticmethod
    def trained(pl_module: LightningModule) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in pl_module.named_parameters() if p.requires_grad}

    def swap(self, pl_module: LightningModule, other: dict[str, Tensor]) -> None:
        """Exchange the values of the trained parameters with those of ``other``, in place."""
        for name, parameter in self.trained(pl_module).items():
            held = parameter.detach().clone()
            parameter.data.copy_(other[name])
            other[name].copy_(held)
