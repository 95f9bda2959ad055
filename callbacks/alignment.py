"""Alignment of the weights of a network with its features."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from backbones.evaluating import evaluating
from callbacks.scoring.undisturbed import eagerly
from lightning_modules.adapted import AdaptedTask
from lightning_modules.batch import Batch


class Alignment(Callback):
    """Logs the alignment of weights with features (Everett et al., ICML 2024, arXiv:2407.05872) every few steps.

    ``A = log_n(RMS(z W^T) / (RMS(W) RMS(z)))`` for a linear layer with n inputs. A is 1/2 for random weights and 1 for
    weights that are aligned with the features. It is measured on a probe batch from the first step of this process (in
    a resumed run, the step where it resumes). Four values are logged for each layer:

    - ``alignment/<layer>/A``: of the current W and z;
    - ``alignment/<layer>/alpha``: of the change of W and the first z (learning rates depend on this alignment);
    - ``alignment/<layer>/omega``: of the first W and the change of z;
    - ``alignment/<layer>/u``: of both changes.

    A value is not logged if one of its two tensors is zero. W is the weight of the merged model if the method can be
    merged, else the weight of the layer. A multiplier of W has no effect on A.

    Args:
        every_n_steps: Steps between two measurements.
        layers: Linear layers of the backbone by the end of their name, such as ``fc1`` or ``blocks.0.attn.qkv``; by
            default all.
        images: Largest number of images of the probe batch on each device.
    """

    def __init__(self, every_n_steps: int = 50, layers: list[str] | None = None, images: int = 8) -> None:
        for name, value in {"every_n_steps": every_n_steps, "images": images}.items():
            if value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        self.every_n_steps, self.layers, self.images = every_n_steps, layers, images
        self.probe: Any = None
        self.measured = -1
        self.first_weights: dict[str, Tensor] = {}
        self.first_inputs: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a sharded model, whose parts on one device are no weights.

        Raises:
            ValueError: With the strategy.
        """
        if isinstance(trainer.strategy, ModelParallelStrategy):
            name = type(trainer.strategy).__name__
            raise ValueError(f"Alignment measures whole weights, and trainer.strategy={name} has parts: leave it out")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        task = cast(AdaptedTask, pl_module)
        self.probe, self.measured = None, -1
        self.first_weights, self.first_inputs = {}, {}
        if not self.chosen(task):
            known = [name for name, module in task.backbone.named_modules() if isinstance(module, nn.Linear)]
            raise ValueError(
                f"layers={self.layers}: no linear layer of the backbone has such a name; it has {', '.join(known[:8])}"
            )

    def chosen(self, pl_module: AdaptedTask) -> dict[str, nn.Module]:
        """Measured layers by their name in the backbone."""
        ends = tuple(f".{name}" for name in self.layers or [""])
        return {
            name: module
            for name, module in pl_module.backbone.named_modules()
            if isinstance(module, nn.Linear) and (self.layers is None or f".{name}".endswith(ends))
        }

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        step = trainer.global_step
        if self.probe is not None and (step % self.every_n_steps or step == self.measured):
            return  # also for a second batch of the same step, because a step is measured once
        if self.probe is None:
            self.probe = batch.inputs[: self.images].clone()
        self.measured = step
        for name, value in self.measure(trainer, cast(AdaptedTask, pl_module)).items():
            pl_module.log(f"alignment/{name}", value)

    @torch.no_grad()
    def measure(self, trainer: Trainer, pl_module: AdaptedTask) -> dict[str, float]:
        """Values ``<layer>/A``, ``alpha``, ``omega`` and ``u`` by name; equal on all ranks."""
        weights, inputs = self.weights(pl_module), self.inputs(pl_module)
        if not self.first_weights:
            self.first_weights = {name: weight.cpu() for name, weight in weights.items()}
            self.first_inputs = {name: z.cpu() for name, z in inputs.items()}
        found = {}
        for name in weights.keys() & inputs.keys():
            weight, z = weights[name], inputs[name]
            w0, z0 = self.first_weights[name].to(weight.device), self.first_inputs[name].to(z.device)
            pairs = {"A": (weight, z), "alpha": (weight - w0, z0), "omega": (w0, z - z0), "u": (weight - w0, z - z0)}
            for kind, (w, x) in pairs.items():
                found[f"{name}/{kind}"] = (squares(w, x), w.shape[1])
        # ranks add sums of squares, not logarithms; sorted, so that all ranks add the same values
        names = sorted(found)
        sums: Any = trainer.strategy.reduce(torch.stack([found[name][0] for name in names]), reduce_op="sum")
        values = {name: alignment(row, found[name][1]) for name, row in zip(names, sums.tolist(), strict=True)}
        return {name: value for name, value in values.items() if value is not None}

    def weights(self, pl_module: AdaptedTask) -> dict[str, Tensor]:
        """Weights (out, in) of the measured layers in fp32, merged if possible."""
        plain = {f"backbone.{name}" for name in pl_module.plain_keys or ()}
        adds = any(p.requires_grad and name not in plain for name, p in pl_module.named_parameters())
        merged = pl_module.merge() if adds and pl_module.mergeable else pl_module.backbone
        known = dict(merged.named_modules())
        return {name: known[name].weight.detach().float().clone() for name in self.chosen(pl_module) if name in known}

    def inputs(self, pl_module: AdaptedTask) -> dict[str, Tensor]:
        """Inputs (rows, in) in fp32 of the layers that run on the probe batch."""
        found: dict[str, Tensor] = {}
        # eagerly, because a compiled graph runs no new hooks
        with recording(self.chosen(pl_module), found), evaluating(pl_module), eagerly():
            pl_module(self.probe)
        return found


@contextmanager
def recording(layers: dict[str, nn.Module], found: dict[str, Tensor]) -> Iterator[None]:
    """Keep the inputs of layers that run inside the context.

    Args:
        layers: Layers by name.
        found: Gets the inputs (rows, in) by name.
    """

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            found[name] = args[0].detach().float().flatten(0, -2)

        return hook

    handles = [module.register_forward_pre_hook(keep(name)) for name, module in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def squares(weight: Tensor, z: Tensor) -> Tensor:
    """Sums of squares of z W^T, z and W, then their numbers of entries, (6,)."""
    parts = (z @ weight.T, z, weight)
    return torch.stack([t.square().sum() for t in parts] + [z.new_tensor(t.numel()) for t in parts])


def alignment(sums: list[float], fan_in: int) -> float | None:
    """Alignment A from the summed results of ``squares``; None if a tensor is zero or there is only one input."""
    output, z, weight = (total / count for total, count in zip(sums[:3], sums[3:], strict=True))
    if min(output, z, weight) <= 0 or fan_in < 2:
        return None
    return math.log(math.sqrt(output / (weight * z)), fan_in)
