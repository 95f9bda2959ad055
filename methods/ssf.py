"""Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning (arXiv:2210.08823).

``y = scale * (W0 x + b0) + shift`` after each layer of a frozen backbone.
"""

from typing import Any, Literal

import torch
from timm import layers
from torch import nn

from backbones import anatomy
from backbones.evaluating import evaluating
from backbones.flow import Flow, trace
from backbones.inject import Backbone, attach, modules_with
from backbones.shift import add_to_output
from lightning_modules.batch import repeated
from methods.core.base import PEFTMethod
from methods.layers.divisors import DivisorLook
from methods.layers.ssf_layers import AFFINE_NORMS, ScaleShift, add_pair, remove_pair, stored

# norms without a bias; by class, because a subclass has an activation inside
CHANNELS_LAST = (nn.RMSNorm, layers.RmsNorm, layers.RmsNormFp32, layers.SimpleNorm, layers.SimpleNormFp32)
CHANNELS_FIRST = (layers.RmsNorm2d, layers.RmsNorm2dFp32, layers.SimpleNorm2d, layers.SimpleNorm2dFp32)


class SSF(PEFTMethod):
    """Scaling and shifting your features (Lian et al., NeurIPS 2022, arXiv:2210.08823).

    Each linear layer, 2d convolution and norm of the backbone gets a pair of scale and shift, except the head and
    layers outside the path from the images to the outputs: those that are not called, whose bare weight is read, or
    that read a table of positions. Scale and shift are merged into the weights during training, unless the output of
    a linear layer or a convolution is changed in place afterwards.

    A merged model has the weights of the plain one. The shift of a layer without a bias goes into the layers that
    follow, if this is exact. Otherwise it stays as an additional bias. A pair stays if its layer has no weight that
    can take the scale.

    Args:
        ssf_init: Initial values. ``normal``: scales around 1 and shifts around 0, as in the published code.
            ``identity``: scales 1 and shifts 0, so that training starts from exactly the frozen backbone.
        ssf_std: Standard deviation of ``normal``.
        ssf_downsample: Whether the downsampling layers of Swin and ConvNeXt get scales and shifts too. The published
            code has options for it, but never uses them.
        ssf_head_norm: Whether the norm inside the head of a ConvNeXt trains, as in the published code.
    """

    shardable = True
    flow: Flow

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
        self.look = DivisorLook()

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        anatomy.call_qkv(backbone)
        # two samples, because a GroupNorm refuses one value, which a map of one pixel can give it
        inputs = repeated(self.example_batch().inputs, 2)
        with evaluating(self), self.mixed_dtypes():
            self.flow = trace(backbone, self.layer_names(backbone), self.plain_outputs, inputs)
        for name, shape in self.flow.shapes.items():
            module = backbone.get_submodule(name)
            spatial = isinstance(module, (nn.Conv2d, *CHANNELS_FIRST))
            spatial = spatial or (isinstance(module, nn.Identity) and len(shape) == 4)
            op = ScaleShift(channels(module, shape, spatial), self.ssf_std, spatial)
            add_pair(module, op, name in self.flow.overwritten)

    def layer_names(self, backbone: Backbone) -> list[str]:
        """Names of the layers that can have a pair, in the order of the backbone."""
        heads = {name.partition(".")[0] for name in self.head_names} | {"fc_norm", anatomy.output_layer(backbone)}
        names = []
        for name, module in backbone.named_modules():
            path = name.split(".")
            # the reduction of a PatchMerging gets no pair, as in the published layer class
            if "downsample" in path and (not self.ssf_downsample or isinstance(module, nn.Linear)):
                continue
            # an identity in the place of the final norm gets a pair too, as in the published code
            if path[0] not in heads and (is_scaled(module) or name == anatomy.final_identity(backbone)):
                names.append(name)
        return names

    def plain_outputs(self, inputs: Any) -> Any:
        """Outputs before this method adapts the backbone; methods that are stacked inside have adapted it already."""
        return super().predict_from(super().features(inputs))

    def heads(self) -> dict[str, nn.Module]:
        norms = anatomy.head_norm(self.backbone) if self.ssf_head_norm else {}
        return super().heads() | {f"backbone.{name}": norm for name, norm in norms.items()}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        ops = [module.ssf for module in modules_with(self.backbone, "ssf")]
        for op, divisible in zip(ops, self.look([op.scale for op in ops], batch_idx == 0), strict=True):
            op.divisible_in_step = divisible

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        for module in modules_with(self.backbone, "ssf"):
            module.ssf.divisible_in_step = None

    def merge_into(self, backbone: Backbone) -> None:
        # all scales first, because the shift of a layer without a bias can go through the merged weights of others
        layers = {name: backbone.get_submodule(name) for name in self.flow.shapes}
        pairs = {name: merge_scale(layer) for name, layer in layers.items() if anatomy.output_names(layer)}
        for name, op in pairs.items():
            if not add_to_output(backbone, self.flow, name, op.shift):
                keep_shift(layers[name], op)
        anatomy.call_qkv(backbone, False)
        super().merge_into(backbone)


def is_scaled(module: nn.Module) -> bool:
    """Whether a module is a linear layer, a convolution, or a norm over one axis of channels."""
    if isinstance(module, nn.LayerNorm):
        return len(module.normalized_shape) == 1
    return isinstance(module, (*anatomy.LINEAR, *AFFINE_NORMS)) or type(module) in (*CHANNELS_LAST, *CHANNELS_FIRST)


def channels(module: Any, shape: torch.Size, spatial: bool) -> int:
    """Number of channels of the output of a layer, whose shape is (B, C, H, W) if ``spatial``, else (B, ..., C)."""
    if isinstance(module, nn.LayerNorm):
        return module.normalized_shape[0]
    if isinstance(module, AFFINE_NORMS):
        return shape[1]
    return shape[-3 if spatial else -1]


def merge_scale(layer: Any) -> ScaleShift:
    """Merge the scale of a pair into a plain layer, and return the pair, whose shift is left to add to the output."""
    op: ScaleShift = layer.ssf
    remove_pair(layer)
    weight, bias = (stored(layer, name) for name in anatomy.output_names(layer) or ())
    if weight is None:
        layer.weight = nn.Parameter(op.scale.clone())
    else:
        axes = weight.shape if weight.numel() == len(op.scale) else (-1, *[1] * (weight.dim() - 1))
        weight.mul_(op.scale.view(axes))
    if bias is not None:
        bias.mul_(op.scale.view_as(bias))
    op.scale.fill_(1.0)
    return op


def keep_shift(layer: Any, op: ScaleShift) -> None:
    """Keep a shift that no plain weight can take: as an additional bias, or as a pair if the layer has no bias."""
    if hasattr(layer, "bias"):
        layer.bias = nn.Parameter(op.shift)
    else:
        attach(layer, "ssf", op)
