"""Scaling Exponents Across Parameterizations and Optimizers (arXiv:2407.05872).

``y = k^-a W z`` for a layer of relative width k, with initial weights of standard deviation ``std0 k^-b`` and the
learning rate ``lr k^-c``.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from backbones.inject import AdapterModule, Backbone, check_free, detach, modules_with
from methods.core.base import PEFTMethod
from methods.core.selective import Selective
from methods.layers.exponents import (
    PARAMETERIZATIONS,
    WEIGHTED,
    Shapes,
    base_shape,
    build_param_groups,
    exponents,
    layer_of,
    ratio_of,
)


class Multiplier(AdapterModule):
    """Multiplies the weight of a layer, but not its bias; the factor is applied to the input.

    Args:
        value: The factor ``k^-a``.
    """

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def pre_hook(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0] * self.value, *args[1:])


def scaled_layers(backbone: Backbone, base: nn.Module) -> Iterator[tuple[str, Any, str, float]]:
    """Name, module, kind and relative width of each layer with a weight that a parameterization rescales.

    Raises:
        ValueError: If the two models have other parameters.
    """
    shapes = {name: parameter.shape for name, parameter in base.named_parameters()}
    missing = sorted(dict(backbone.named_parameters()).keys() ^ shapes.keys())
    if missing:
        raise ValueError(
            f"width_base: the model and the base model do not have the same parameters: {', '.join(missing[:3])} "
            f"({len(missing)} in all); the base model may differ in width only, not in depth"
        )
    for name, module in backbone.named_modules():
        if isinstance(module, WEIGHTED):
            weight = f"{name}.weight"
            there = base_shape(module.weight.shape, weight, shapes, {})
            layer = layer_of(weight, module.weight.shape, there, module, {})
            k = ratio_of(layer, module.weight.shape, there, module)
            if k != 1:
                yield name, module, layer, k


@torch.no_grad()
def rescale(backbone: Backbone, base: nn.Module, parameterization: str) -> None:
    """Rescale the random initial weights of a backbone to those of a parameterization, in place.

    Args:
        backbone: The backbone.
        base: The same backbone at the base width, with its own initial weights.
        parameterization: A key of ``PARAMETERIZATIONS``.
    """
    for name, module, layer, k in scaled_layers(backbone, base):
        a, b = PARAMETERIZATIONS[parameterization][layer]
        here, there = (float(weights.std()) for weights in (module.weight, base.get_parameter(f"{name}.weight")))
        if here and there:  # a head of zeros stays as it is
            # inits of timm and torch have b = 0 (the same std at any width) or b = 1/2 (by the root of the fan-in)
            own = round(2 * math.log(there / here, k)) / 2
            module.weight.copy_(module.weight * k ** (own - b))
        if a:
            check_free(module, "multiplier")
            op = Multiplier(k**-a)
            module.add_module("multiplier", op)
            module.register_forward_pre_hook(op.pre_hook)


@torch.no_grad()
def check_reached(backbone: Backbone, image: Tensor) -> None:
    """Refuse a backbone that uses the weight of a layer without a call of the layer, because no multiplier acts then.

    Raises:
        ValueError: With the name of the layer.
    """
    called: set[nn.Module] = set()
    handles = [
        module.register_forward_pre_hook(lambda module, args: called.add(module))
        for module in modules_with(backbone, "multiplier")
    ]
    training = backbone.training
    backbone.eval()(image)
    backbone.train(training)
    for handle in handles:
        handle.remove()
    missed = [n for n, m in backbone.named_modules() if "multiplier" in m._modules and m not in called]
    if missed:
        raise ValueError(
            f"{type(backbone).__name__} reads {missed[0]}.weight without calling the layer, so that nothing can be "
            "multiplied there: use width_parameterization=standard, which has no multipliers"
        )


class WidthScaling(PEFTMethod):
    """Width scaling (Everett et al., ICML 2024, arXiv:2407.05872), stacked as in ``--method ssf+width_scaling``.

    Args:
        width_parameterization: Rules from the base width to the width of the backbone. ``standard``: scales learning
            rates, and initial weights if they are random. ``ntk``, ``mup`` and ``mean_field``: also multiply the
            outputs of layers, each with its own exponents; they need random weights.
        width_base: Width of the model with which ``lr`` was tuned: its ``embed_dim``, for heads of the same size; or
            the arguments of ``timm.create_model`` that make it, such as ``{embed_dim: 48, num_heads: [1, 2, 4, 8]}``.
        width_alignment: Assumed alignment of updates with the features. ``full``: aligned. ``none``: not aligned, which
            gives larger rates at large widths.
        width_readout_alignment: Alignment of the classifier's initial weights with the change of its features, from
            0.5 (none) to 1 (full).
        width_lr_constants: Factors of ``lr`` for ``embedding``, ``hidden`` and ``readout`` layers, tuned at the base
            width.
        width_layer_types: Kind of layer (``embedding``, ``hidden``, ``readout`` or ``constant``) by regular expressions
            of parameter names. It overrides the kind that the shapes give.
        width_eps_per_layer: Whether epsilon shrinks with the gradients of each kind of layer as the width grows.
        width_independent_weight_decay: Whether learning rate times weight decay keeps its value at the base width.
    """

    standalone = False
    backbone_args: dict[str, Any]
    pretrained: bool | str

    def __init__(
        self,
        width_parameterization: Literal["standard", "ntk", "mup", "mean_field"] = "standard",
        width_base: int | dict[str, Any] | None = None,
        width_alignment: Literal["full", "none"] = "full",
        width_readout_alignment: float = 0.5,
        width_lr_constants: dict[str, float] | None = None,
        width_layer_types: dict[str, str] | None = None,
        width_eps_per_layer: bool = False,
        width_independent_weight_decay: bool = False,
        **kwargs: Any,
    ) -> None:
        if not self.scales_over_widths:
            raise ValueError(
                f"width_parameterization={width_parameterization!r}: {self.method_name()} trains single entries or "
                "gates, for which there is no rule over widths; leave width_scaling out"
            )
        if not width_base:
            raise ValueError(
                f"width_parameterization={width_parameterization!r} needs a width_base: the embed_dim of the model "
                "that lr was tuned at, such as --model.width_base 192"
            )
        if not 0.5 <= width_readout_alignment <= 1:
            raise ValueError(f"width_readout_alignment={width_readout_alignment}: expected 0.5 (none) to 1 (full)")
        for name, value in (width_lr_constants or {}).items():
            if value <= 0:
                raise ValueError(f"width_lr_constants[{name!r}]={value}: expected a positive number")
        # set before the task's __init__, because that builds the backbone
        self.width_parameterization = width_parameterization
        self.width_base = width_base
        self.width_alignment = width_alignment
        self.width_readout_alignment = width_readout_alignment
        self.width_groups: dict[str, Any] = {
            "constants": width_lr_constants,
            "layer_types": width_layer_types,
            "eps_mode": "per_layer" if width_eps_per_layer else "constant",
            "wd_mode": "independent" if width_independent_weight_decay else "coupled",
        }
        super().__init__(**kwargs)

    def build(self) -> None:
        """Build the plain backbone in the parameterization.

        Raises:
            ValueError: If pretrained weights would be scaled, or the base model does not fit.
        """
        super().build()
        kind = self.width_parameterization
        exponents(kind, self.optimizer_name, self.width_alignment, self.width_readout_alignment)
        if self.base_args().items() <= self.backbone_args.items():
            return  # this is the base model
        random = self.pretrained is False
        if not random and kind != "standard":
            raise ValueError(
                f"width_parameterization={kind!r} scales initial weights, but pretrained={self.pretrained!r} gives "
                "them: use width_parameterization=standard, which then scales learning rates only, or pretrained=false"
            )
        base = self.at_base_width("cpu" if random else "meta").backbone
        heads = [{m.head_dim for m in net.modules() if hasattr(m, "head_dim")} for net in (self.backbone, base)]
        if heads[0] != heads[1] and kind in ("mup", "mean_field"):
            raise ValueError(
                f"width_base={self.width_base!r}: head size {heads[1]} in the base model, {heads[0]} in the model; "
                f"{kind} expects equal sizes, so change num_heads with the width"
            )
        if random:
            rescale(self.backbone, base, kind)
            check_reached(self.backbone, self.example_batch().inputs)
        else:
            list(scaled_layers(self.backbone, base))  # raises an error for a base model that does not fit

    def base_args(self) -> dict[str, Any]:
        """Arguments of timm that make the base model."""
        if not isinstance(self.width_base, int):
            return self.width_base or {}
        width = getattr(self.backbone, "embed_dim", None)
        heads = {m.num_heads for m in self.backbone.modules() if isinstance(getattr(m, "num_heads", None), int)}
        if not isinstance(width, int) or len(heads) > 1:
            raise ValueError(
                f"width_base={self.width_base}: {type(self.backbone).__name__} has not one width and number of heads; "
                "give the arguments of its base model, such as --model.width_base '{embed_dim: 48, num_heads: [...]}'"
            )
        if not heads:
            return {"embed_dim": self.width_base}
        size = width // heads.pop()
        if self.width_base % size:
            raise ValueError(f"width_base={self.width_base}: expected a multiple of the size of a head, {size}")
        return {"embed_dim": self.width_base, "num_heads": self.width_base // size}

    def at_base_width(self, device: str) -> Self:
        """This module with its backbone at the base width and random weights, not adapted.

        Raises:
            ValueError: If timm makes no such model.
        """
        options = {name: value for name, value in self.hparams.items() if not name.startswith("_")}
        args = {**(options.get("backbone_args") or {}), **self.base_args()}
        options |= {"backbone_args": args, "pretrained": False}
        try:
            with torch.random.fork_rng(devices=[]), torch.device(device):
                return type(self)(**options)
        except (TypeError, RuntimeError) as error:
            raise ValueError(f"width_base={self.width_base!r}: timm makes no such model: {error}") from error

    def base_shapes(self) -> Shapes:
        """Shapes of all parameters at the base width; without added parameters for a method that chooses from data."""
        base = self.at_base_width("meta")
        if not (isinstance(base, Selective) and base.scorer is not None):
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                base.adapt(base.backbone)
        return {name: parameter.shape for name, parameter in base.named_parameters()}

    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups with the learning rate of each kind of layer."""
        kind = (self.width_parameterization, self.optimizer_name, self.width_alignment)
        rates: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay, "eps": self.adam_eps}
        rates |= {"omega": self.width_readout_alignment} | self.width_groups
        return build_param_groups(self, self.base_shapes(), *kind, **rates, decayed=self.decays)

    def merge_into(self, backbone: Backbone) -> None:
        """Merge the multipliers into the weights of a backbone, in place."""
        for module in list(modules_with(backbone, "multiplier")):
            op = detach(module, "multiplier")
            assert isinstance(op, Multiplier)
            module.weight.mul_(op.value)
        super().merge_into(backbone)
