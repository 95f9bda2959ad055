"""Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning (arXiv:2210.08823).

``y = scale * (W0 x + b0) + shift`` after each layer of a frozen backbone.
"""

from typing import Any, Literal

import torch
from timm.layers import LayerNorm, LayerNorm2d
from timm.models.convnext import ConvNeXt
from timm.models.mlp_mixer import Affine
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from backbones.inject import AdapterModule, Backbone, attach, check_free, detach, modules_with, swap_class
from methods.core.base import PEFTMethod

SMALLEST_SCALE = 1e-3  # division by a smaller scale loses too many digits of the gradient


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

    def affine(self, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Per-channel weight (C,) and bias (C,) of a norm with the map merged in."""
        weight = self.scale if weight is None else self.scale * weight
        return weight, self.shift if bias is None else self.scale * bias + self.shift

    @property
    def divisible(self) -> bool:
        """Whether the backward pass may divide by every scale."""
        if not torch.is_grad_enabled():
            return True
        if self.divisible_in_step is None:  # no cache by version, because fused optimizers do not change it
            return bool(self.scale.detach().abs().min() >= SMALLEST_SCALE)
        return self.divisible_in_step


class MergedLinear(torch.autograd.Function):
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


class MergedConv2d(torch.autograd.Function):
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
    return (d_y - shift * d_shift) / scale, d_shift


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
        if not self.ssf.divisible or self.padding_mode != "zeros":
            return self.ssf.hook(self, (input,), super().forward(input))
        options = (self.stride, self.padding, self.dilation, self.groups)
        return MergedConv2d.apply(input, self.weight, self.bias, self.ssf.scale, self.ssf.shift, options)


class SSFLayerNorm(nn.LayerNorm):
    """A LayerNorm with scale and shift merged into its affine map; autograd of the norm gives their gradients."""

    ssf: ScaleShift

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, *self.ssf.affine(self.weight, self.bias), self.eps)


class SSFTimmLayerNorm(LayerNorm):
    """timm's LayerNorm with scale and shift merged into its affine map."""

    forward = SSFLayerNorm.forward  # type: ignore[assignment]


class SSFLayerNorm2d(LayerNorm2d):
    """timm's LayerNorm over the channels of (B, C, H, W) maps, with scale and shift merged into its affine map."""

    def forward(self, x: Tensor) -> Tensor:
        return SSFLayerNorm.forward(self, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # type: ignore[arg-type]


MERGED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: SSFLinear,
    nn.Conv2d: SSFConv2d,
    nn.LayerNorm: SSFLayerNorm,
    LayerNorm: SSFTimmLayerNorm,
    LayerNorm2d: SSFLayerNorm2d,
}
PLAIN = {merged: plain for plain, merged in MERGED.items()}
# all layers that get a scale and a shift; those that are not in MERGED get them as a hook on their output
OTHERS = (nn.Linear, nn.Conv2d, nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, Affine)


class SSF(PEFTMethod):
    """Scaling and shifting your features (Lian et al., NeurIPS 2022, arXiv:2210.08823).

    Args:
        ssf_init: Initial values. ``normal``: scales around 1 and shifts around 0, as in the published code.
            ``identity``: scales 1 and shifts 0, so that training starts from exactly the frozen backbone.
        ssf_std: Standard deviation of ``normal``.
        ssf_downsample: Whether the downsampling layers of Swin and ConvNeXt get scales and shifts too. The published
            code has options for it, but never uses them.
        ssf_head_norm: Whether the norm inside the head of a ConvNeXt trains, as in the published code.
    """

    def __init__(
        self,
        ssf_init: Literal["normal", "identity"] = "normal",
        ssf_std: float = 0.02,
        ssf_downsample: bool = False,
        ssf_head_norm: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if ssf_std < 0:
            raise ValueError(f"ssf_std={ssf_std}: expected a standard deviation of at least 0")
        self.ssf_std = ssf_std if ssf_init == "normal" else 0.0
        self.ssf_downsample, self.ssf_head_norm = ssf_downsample, ssf_head_norm

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        heads = tuple(name.partition(".")[0] for name in self.head_names)
        for name, module in list(backbone.named_modules()):
            path = name.split(".")
            if not isinstance(module, OTHERS) or path[0] in (*heads, "fc_norm"):
                continue
            # the reduction of a PatchMerging gets no pair, as in the published layer class
            if "downsample" in path and (not self.ssf_downsample or isinstance(module, nn.Linear)):
                continue
            self.add_pair(module)
        # if the final norm is an identity (before average pooling), it gets a pair too
        final = backbone.norm_pre if isinstance(backbone, ConvNeXt) else getattr(backbone, "norm", None)
        if isinstance(final, nn.Identity):
            attach(final, "ssf", ScaleShift(backbone.num_features, self.ssf_std, isinstance(backbone, ConvNeXt)))

    def add_pair(self, module: Any) -> None:
        """Add scale and shift to a layer: merged into its weights for classes in ``MERGED``, else as a hook."""
        dim = next(module.parameters()).shape[-1 if isinstance(module, Affine) else 0]
        op = ScaleShift(dim, self.ssf_std, isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm)))
        if type(module) in MERGED:
            check_free(module, "ssf")
            module.ssf = op
            swap_class(module, MERGED[type(module)])
        else:
            attach(module, "ssf", op)

    def heads(self) -> dict[str, nn.Module]:
        norm = isinstance(self.backbone, ConvNeXt) and isinstance(self.backbone.head.norm, nn.Module)
        extra = {"backbone.head.norm": self.backbone.head.norm} if norm and self.ssf_head_norm else {}
        return super().heads() | extra

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        # one check of all scales makes a GPU wait once per step instead of once per layer
        ops = [module.ssf for module in modules_with(self.backbone, "ssf")]
        if float(torch.cat([op.scale.detach() for op in ops]).abs().min()) >= SMALLEST_SCALE:
            for op in ops:
                op.divisible_in_step = True

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        for module in modules_with(self.backbone, "ssf"):
            module.ssf.divisible_in_step = None

    def merge_into(self, backbone: Backbone) -> None:
        for module in modules_with(backbone, "ssf"):
            # these pairs stay, because an identity has no weight to merge into, and an RMSNorm has no bias
            if isinstance(module, (nn.Identity, nn.RMSNorm)):
                continue
            if type(module) in PLAIN:
                op = module._modules.pop("ssf")
                swap_class(module, PLAIN[type(module)])
            else:
                op = detach(module, "ssf")
            if isinstance(module, Affine):
                module.alpha.mul_(op.scale)
                module.beta.mul_(op.scale).add_(op.shift)
                continue
            weight, bias = module.weight, module.bias
            new_bias = op.shift if bias is None else op.scale * bias + op.shift
            if weight is not None:
                weight.mul_(op.scale.view(-1, *[1] * (weight.dim() - 1)))
            else:
                module.weight = nn.Parameter(op.scale)
            module.bias = nn.Parameter(new_bias)
        super().merge_into(backbone)
