"""VeLoRA: Memory Efficient Training using Rank-1 Sub-Token Projections (arXiv:2405.17991).

``x ~ (x v) v^T`` for each sub-token x of an input: trained layers keep only ``x v`` for their gradients.
"""

import difflib
from contextlib import nullcontext
from math import gcd
from typing import Any

import torch
import torch.distributed
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.anatomy import ends, linear_layers
from backbones.inject import Backbone, check_free, modules_with, swap_class
from callbacks.scoring.ranks import over_ranks
from callbacks.scoring.undisturbed import eagerly, unchanged
from methods.core.base import PEFTMethod
from methods.core.precision import BATCH_NORM
from methods.layers.low_rank_layers import LoRALinear
from methods.layers.ssf_layers import SSFLinear
from methods.layers.sub_tokens import (
    CompressedAddedLowRank,
    CompressedLinear,
    CompressedMergedLowRank,
    CompressedScaleShift,
    Direction,
    Init,
    unit,
    without_effect,
)
from methods.qlora import QLoRALinear


def compresses(layer: Any) -> bool:
    """Whether a layer compresses in this forward pass; in an evaluation it computes as without VeLoRA."""
    return layer.training and (torch.is_grad_enabled() or layer.velora.observes_next)


class VeLoRALinear(nn.Linear):
    """A trained linear layer that keeps the projection z of its input."""

    velora: Direction

    def forward(self, input: Tensor) -> Tensor:
        if not compresses(self):
            return super().forward(input)
        return CompressedLinear.apply(input, self.weight, self.bias, self.velora(input), self.velora.s)


class VeLoRALoRALinear(LoRALinear):
    """A linear layer whose low-rank update keeps the projection z of the input of A."""

    velora: Direction

    def forward(self, input: Tensor) -> Tensor:
        if not compresses(self):
            return super().forward(input)
        if self.lora.drops:
            return self.unmerged(input)
        lora, velora = self.lora, self.velora
        options = (velora(input), velora.s, lora.rows, lora.scale)
        y = CompressedMergedLowRank.apply(input.flatten(0, -2), self.weight, self.bias, *lora.factors(), *options)
        return y.view(*input.shape[:-1], -1)

    def unmerged(self, input: Tensor) -> Tensor:
        """Output with the update added to the frozen product, as dropout needs it."""
        lora, velora, y = self.lora, self.velora, self.product(input, self.bias)
        x, (A, B) = lora.drop_input(input), lora.factors()
        options = (velora(x), velora.s, lora.rows, lora.scale)
        mask = lora.mask(y, len(A))
        sums = CompressedAddedLowRank.apply(y.flatten(0, -2), x.flatten(0, -2), A, B, mask, *options)
        return sums.view_as(y)


class VeLoRAQLoRALinear(VeLoRALoRALinear, QLoRALinear):
    """A four-bit linear layer whose low-rank update keeps the projection z of the input of A."""

    def forward(self, input: Tensor) -> Tensor:
        return self.unmerged(input) if compresses(self) else super().forward(input)


class VeLoRASSFLinear(SSFLinear):
    """A linear layer whose scale and shift keep the projection z of the frozen product, not the layer's output."""

    velora: Direction

    def forward(self, input: Tensor) -> Tensor:
        if not compresses(self):
            return super().forward(input)
        x = F.linear(input, self.weight, self.bias)
        return CompressedScaleShift.apply(x, self.ssf.scale, self.ssf.shift, self.velora(x), self.velora.s)


def by_default(name: str, layer: Any) -> bool:
    """Whether a layer is compressed by default. Layers whose tensor attention or GELU saves anyway are not."""
    if isinstance(layer, SSFLinear):  # attention saves the output of qkv, and GELU that of fc1
        return layer.out_features <= layer.in_features
    if isinstance(layer, LoRALinear):
        return not ends(name, "attn.proj")
    return layer.out_features < layer.in_features


COMPRESSED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: VeLoRALinear,
    LoRALinear: VeLoRALoRALinear,
    QLoRALinear: VeLoRAQLoRALinear,
    SSFLinear: VeLoRASSFLinear,
}
PLAIN = {compressed: plain for plain, compressed in COMPRESSED.items()}


def trains(layer: Any) -> bool:
    """Whether a layer can be compressed and saves a tensor for a gradient."""
    return type(layer) in COMPRESSED and (type(layer) is not nn.Linear or layer.weight.requires_grad)


class VeLoRA(PEFTMethod):
    """Rank-1 sub-token projections of saved activations (Miles et al., NeurIPS 2024, arXiv:2405.17991).

    Stacked on another method, it saves memory in training: ``lora+velora``, ``ssf+velora``, ``full+velora``. Outputs
    stay the same, some gradients become approximate.

    Args:
        velora_targets: Layers by the end of their name, such as ``fc2`` or ``down``. By default the updates of LoRA
            (except at ``attn.proj``, because attention saves its input anyway), trained linear layers with fewer
            outputs than inputs, and scale-shifts after proj and fc2.
        velora_size: Channels M of a sub-token; one number is kept for each. By default, as in the paper, 16 for updates
            and adapters and 32 for layers of the backbone, or their greatest common divisor with the width.
        velora_sizes: Sizes that differ from ``velora_size``, by the end of the layer's name.
        velora_scale: Factor s of the approximate gradients.
        velora_init: Direction v of the projection. ``batch_average_once``: mean sub-token of the first training batch,
            then fixed. ``batch_average``: mean of each batch. ``running_average``: running average of these means.
            ``random``: fixed random direction. ``svd``: first right singular vector of the first batch, then fixed.
        velora_decay: Weight of the old v with ``running_average``.
        velora_pad: Whether zeros fill the last sub-token of a token if the size does not divide the width.
    """

    standalone = False

    def __init__(
        self,
        velora_targets: list[str] | None = None,
        velora_size: int | None = None,
        velora_sizes: dict[str, int] | None = None,
        velora_scale: float = 1.0,
        velora_init: Init = "batch_average_once",
        velora_decay: float = 0.9,
        velora_pad: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        sizes = {"velora_size": velora_size} | {f"velora_sizes[{n!r}]": m for n, m in (velora_sizes or {}).items()}
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise ValueError(f"{name}={size}: expected at least 1 channel")
        if velora_targets is not None and not velora_targets:
            raise ValueError("velora_targets is empty: expected names such as fc2, or leave it out")
        if velora_scale <= 0:
            raise ValueError(f"velora_scale={velora_scale}: expected a positive factor; at 0 nothing would train")
        if not 0 <= velora_decay < 1:
            raise ValueError(f"velora_decay={velora_decay}: expected a weight of at least 0 and below 1")
        self.velora_targets, self.velora_size, self.velora_sizes = velora_targets, velora_size, dict(velora_sizes or {})
        self.velora_pad = velora_pad
        self.velora_options = velora_scale, velora_init, velora_decay
        self.velora_moves = velora_init in ("batch_average", "running_average")
        self.velora_drawn = False

    def after_adapt(self, backbone: Backbone) -> None:
        super().after_adapt(backbone)
        targets = self.find_compressible(backbone)
        unknown = [end for end in self.velora_sizes if not any(ends(name, end) for name in targets)]
        if unknown:
            raise ValueError(f"velora_sizes names {', '.join(unknown)}, which no compressed layer's name ends with")
        for name, layer in targets.items():
            check_free(layer, "velora")
            layer.velora = Direction(self.size(name, layer), *self.velora_options)
            swap_class(layer, COMPRESSED[type(layer)])

    def find_compressible(self, backbone: Backbone) -> dict[str, Any]:
        """Find the layers to compress.

        Raises:
            ValueError: If there are none, or a target is unknown or frozen.
        """
        every = linear_layers(backbone, tuple(self.head_names))
        trained = {name: layer for name, layer in every.items() if trains(layer)}
        if not trained:
            raise ValueError(
                f"{self.method_name()}: VeLoRA saves memory of trained linear layers and scale-shifts, and this model "
                "has none of a supported kind; a frozen layer keeps no input. Stack it on a method, as in lora+velora, "
                "or use lora alone on this backbone"
            )
        if self.velora_targets is None:
            return {name: layer for name, layer in trained.items() if by_default(name, layer)} or trained
        found: dict[str, Any] = {}
        for target in self.velora_targets:
            hits = [name for name in every if ends(name, target)]
            if not hits:
                known = sorted({name.rpartition(".")[2] for name in every})
                near = difflib.get_close_matches(target, known, n=5, cutoff=0.4) or known[:5]
                raise ValueError(
                    f"velora_targets: no linear layer's name ends with {target!r}; near: {', '.join(near)}"
                )
            if not any(name in trained for name in hits):
                known = sorted({name.rpartition(".")[2] for name in trained})
                raise ValueError(
                    f"velora_targets: {target} does not train as a linear layer or scale-shift, so VeLoRA saves "
                    f"nothing for it (a frozen layer keeps no input); trained are: {', '.join(known)}"
                )
            found |= {name: trained[name] for name in hits if name in trained}
        return found

    def size(self, name: str, layer: Any) -> int:
        """Channels M of a layer's sub-tokens."""
        width = layer.out_features if isinstance(layer, SSFLinear) else layer.in_features
        size = next((m for end, m in self.velora_sizes.items() if ends(name, end)), self.velora_size)
        if size is None:
            assert self.plain_keys is not None
            adapter = isinstance(layer, LoRALinear) or f"{name}.weight" not in self.plain_keys
            return gcd(width, 16 if adapter else 32)
        if size > width:
            raise ValueError(f"velora_size={size} is more than the {width} channels of {name}")
        if width % size and not self.velora_pad:
            fits = [m for m in range(1, width + 1) if width % m == 0]
            near = sorted(sorted(fits, key=lambda m: abs(m - size))[:4])
            raise ValueError(
                f"velora_size={size} does not divide the {width} channels of {name}: expected one such as "
                f"{', '.join(map(str, near))}, or velora_pad=true"
            )
        return size

    def before_merge(self, backbone: Backbone) -> None:
        for layer in modules_with(backbone, "velora"):
            swap_class(layer, PLAIN[type(layer)])
            del layer.velora
        super().before_merge(backbone)

    # direction v

    def directions(self) -> dict[str, Direction]:
        return {n.removesuffix(".velora"): m for n, m in self.backbone.named_modules() if isinstance(m, Direction)}

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.velora_drawn = False
        idle = self.idle()
        if idle:
            shown = ", ".join(idle[:4]) + (f" and {len(idle) - 4} more" if len(idle) > 4 else "")
            rank_zero_warn(
                f"velora: nothing is saved at {shown}: another operation keeps the same tensor, or the layer is never "
                "called. Compress all that keep a tensor or none; choose by velora_targets"
            )

    def idle(self) -> list[str]:
        """Layers where compression saves nothing, because another op stores the tensor or the layer is never called."""
        with unchanged(self), torch.enable_grad(), eagerly():
            self.eval()
            for layer in modules_with(self.backbone, "velora"):
                layer.training = True
            return without_effect(self.directions(), lambda: self(self.example_batch().inputs))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        if self.velora_drawn and not self.velora_moves:
            return
        self.velora_drawn = True
        for direction in self.directions().values():
            direction.observes_next |= self.velora_moves
        if not self.velora_moves:
            self.calibrate(batch)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        if self.velora_moves:  # in this batch every rank had a direction of its own: average them
            directions = self.directions().values()
            for direction, total in zip(directions, over_ranks([d.v for d in directions]), strict=True):
                direction.v.copy_(unit(total))

    def calibrate(self, batch: Any) -> None:
        """Compute each v that is still missing from this batch of all ranks. Nothing else of the model changes."""
        directions = [direction for direction in self.directions().values() if direction.observes_next]
        if not directions:  # a resumed run, or velora_init=random
            return
        moving = [m for m in self.modules() if isinstance(m, (BATCH_NORM, Direction))]
        before = [(buffer, buffer.clone()) for module in moving for buffer in module.buffers()]
        with unchanged(self), torch.no_grad(), eagerly():
            self.train()
            with self.trainer.precision_plugin.forward_context() if self._trainer else nullcontext():
                self.loss(batch)
            for buffer, value in before:
                buffer.copy_(value)
        for direction in directions:
            if direction.observes_next:  # a layer that is never called; its v has no effect
                direction.observe(torch.zeros_like(direction.v))
        for direction, total in zip(directions, over_ranks([d.sums for d in directions]), strict=True):
            direction.set_from(total)
