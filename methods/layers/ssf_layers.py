"""Layers whose features are scaled and shifted: as a hook, or with scale and shift merged into the weights."""

from functools import cache
from typing import Any

import torch
from timm.layers import FrozenBatchNormAct2d
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from backbones.inject import AdapterModule, attach, check_free, detach, swap_class
from methods.layers.divisors import away_from_zero, divisible
from methods.layers.operation import Operation


class ScaleShift(AdapterModule):
    """Per-channel affine map of a feature, ``y = scale * x + shift``.

    Args:
        dim: Channels C of the feature.
        std: Standard deviation of the initial scale (around 1) and shift (around 0), dimensionless.
        spatial: Whether the feature is (B, C, H, W) instead of (B, ..., C).
    """

    def __init__(self, dim: int, std: float, spatial: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(dim).normal_(1.0, std))
        self.shift = nn.Parameter(torch.empty(dim).normal_(0.0, std))
        self.spatial = spatial
        self.divisible_in_step: bool | None = None  # value of ``divisible`` during a training step, None outside

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        # cast, otherwise a bf16 feature times an fp32 scale becomes fp32 and doubles the memory
        scale, shift = self.scale.to(output.dtype), self.shift.to(output.dtype)
        if self.spatial:
            scale, shift = scale.view(-1, 1, 1), shift.view(-1, 1, 1)
        return output * scale + shift

    @property
    def divisible(self) -> bool:
        """Whether the backward pass may divide by every scale."""
        return divisible(self.scale, self.divisible_in_step)


class MergedLinear(Operation):
    """``y = x (scale W)^T + scale b + shift`` for frozen W and b; keeps only its output for the backward pass.

    With g the gradient of y: d shift = sum g, d scale = (sum g y - shift sum g) / scale, d x = g (scale W).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
        y = F.linear(x, weight * scale[:, None], shift if bias is None else scale * bias + shift)
        ctx.save_for_backward(weight, scale, shift, y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        weight, scale, shift, y = ctx.saved_tensors
        d_scale, d_shift = affine_gradients(g.flatten(0, -2), y.flatten(0, -2), scale, shift, (0,))
        d_x = g @ (weight * scale[:, None]).to(g.dtype) if ctx.needs_input_grad[0] else None
        return d_x, None, None, d_scale, d_shift


class MergedConv2d(Operation):
    """Convolution of (B, C, H, W) maps with weight ``scale W`` and bias ``scale b + shift`` for frozen W and b.

    It keeps only its output for the backward pass. ``options`` are stride, padding, dilation and groups.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor, options: tuple[Any, ...]
    ) -> Tensor:
        bias = shift if bias is None else scale * bias + shift
        y = F.conv2d(x, weight * scale.view(-1, 1, 1, 1), bias, *options)
        ctx.save_for_backward(weight, scale, shift, y)
        ctx.shape, ctx.options = x.shape, options
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        weight, scale, shift, y = ctx.saved_tensors
        d_scale, d_shift = affine_gradients(g, y, scale, shift, (0, 2, 3))
        d_x = None
        if ctx.needs_input_grad[0]:
            merged = (weight * scale.view(-1, 1, 1, 1)).to(g.dtype)
            d_x = conv2d_input(ctx.shape, merged, g, *ctx.options)
        return d_x, None, None, d_scale, d_shift, None


def affine_gradients(
    g: Tensor, y: Tensor, scale: Tensor, shift: Tensor, dims: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Gradients of scale and shift, from the gradient g and the value y of ``scale * z + shift``; summed in fp32."""
    if g.device.type == "cpu" and g.dtype == torch.float32 and g.ndim == 2:
        d_shift, d_y = column_sums(g, y)
    else:
        d_shift, d_y = g.sum(dims, dtype=torch.float32), (g * y).sum(dims, dtype=torch.float32)
    return (d_y - shift * d_shift) / away_from_zero(scale), d_shift


def column_sums(g: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Sums (C,) of g and of g y over the rows, for g and y (T, C), in one pass: two thirds of the time on a CPU.

    They are equal to the gradients of bias and weight of a LayerNorm with the normalised input y (mean 0, deviation 1).
    """
    rows, channels = y.shape
    mean, rstd, weight = y.new_zeros(rows, 1), y.new_ones(rows, 1), y.new_ones(channels)
    _, d_y, d_shift = torch.ops.aten.native_layer_norm_backward(
        g, y, [channels], mean, rstd, weight, weight, [False, True, True]
    )
    return d_shift, d_y


class SSFLinear(nn.Linear):
    """A linear layer with its scale and shift merged into the weights."""

    ssf: ScaleShift

    def forward(self, input: Tensor) -> Tensor:
        if not self.ssf.divisible:
            return self.ssf.hook(self, (input,), super().forward(input))
        return MergedLinear.apply(input, self.weight, self.bias, self.ssf.scale, self.ssf.shift)


class SSFConv2d(nn.Conv2d):
    """A convolution with its scale and shift merged into the weights."""

    ssf: ScaleShift

    def forward(self, input: Tensor) -> Tensor:
        named = isinstance(self.padding, str)  # "same", which the gradient of the input does not take
        if not self.ssf.divisible or self.padding_mode != "zeros" or named:
            return self.ssf.hook(self, (input,), super().forward(input))
        options = (self.stride, self.padding, self.dilation, self.groups)
        return MergedConv2d.apply(input, self.weight, self.bias, self.ssf.scale, self.ssf.shift, options)


class SSFNorm(nn.Module):
    """A norm whose ``weight`` and ``bias`` are read with scale and shift merged in.

    Autograd of the norm gives the gradients. An activation inside the norm acts on the scaled and shifted feature. A
    shard of FSDP2 is read as it is, because FSDP2 looks for it by name; in the forward pass the weight is plain.
    """

    plain: Any  # class of the norm
    ssf: ScaleShift

    @property
    def weight(self) -> Tensor:
        weight = stored(self, "weight")
        if isinstance(weight, DTensor):
            return weight
        return self.cast(self.ssf.scale if weight is None else self.ssf.scale * weight)

    @property
    def bias(self) -> Tensor:
        bias = stored(self, "bias")
        if isinstance(bias, DTensor):
            return bias
        return self.cast(self.ssf.shift if bias is None else self.ssf.scale * bias + self.ssf.shift)

    def cast(self, value: Tensor) -> Tensor:
        """Value in the dtype of running statistics, because a BatchNorm refuses other dtypes beside them."""
        mean = stored(self, "running_mean")
        return value if mean is None else value.to(mean.dtype)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return blank_norm, (self.plain,), self.__dict__  # pickle cannot import this class, which is made at run time


def stored(module: nn.Module, name: str) -> Tensor | None:
    """Parameter or buffer of a module as it is stored; None if it has none."""
    return module._parameters.get(name, module._buffers.get(name))


@cache
def merged_norm(plain: Any) -> type[SSFNorm]:
    """Subclass of a norm with scale and shift merged into its affine map."""
    return type(f"SSF{plain.__name__}", (SSFNorm, plain), {"plain": plain})


def blank_norm(plain: Any) -> SSFNorm:
    """Norm of the subclass without attributes, which pickle and deepcopy fill in."""
    cls = merged_norm(plain)
    return cls.__new__(cls)


MERGED: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: SSFLinear, nn.Conv2d: SSFConv2d}
PLAIN = {merged: plain for plain, merged in MERGED.items()}
AFFINE_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, FrozenBatchNormAct2d)


def add_pair(module: nn.Module, op: ScaleShift, overwritten: bool) -> None:
    """Scale and shift the output of a layer.

    Args:
        module: The layer.
        op: Its scale and shift.
        overwritten: Whether the output is changed in place after the call. Then scale and shift are not merged into
            a linear layer or a convolution, because the merged form needs its output in the backward pass.
    """
    if isinstance(module, AFFINE_NORMS):
        plain: Any = type(module)
        merged: Any = merged_norm(plain)
    else:
        merged = None if overwritten else MERGED.get(type(module))
    if merged is None:
        attach(module, "ssf", op)
        return
    check_free(module, "ssf")
    module.ssf = op
    swap_class(module, merged)


def remove_pair(module: nn.Module) -> None:
    """Make a layer plain again."""
    plain: Any = module.plain if isinstance(module, SSFNorm) else PLAIN.get(type(module))
    if plain is None:
        detach(module, "ssf")
        return
    del module._modules["ssf"]
    swap_class(module, plain)
