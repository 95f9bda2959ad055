"""Width parameterizations: learning rates, initial weights and multipliers that follow the width of a backbone.

Everett et al., "Scaling Exponents Across Parameterizations and Optimizers", ICML 2024, arXiv:2407.05872. With k the
width relative to that of a base model, a layer computes ``k^-a W z`` from weights of standard deviation
``std0 k^-b``, and W learns at the rate ``lr k^-c``; its gradient has entries of size ``k^-g``. The exponents are
derived from the paper's definitions, not copied from its tables. At k = 1 every parameterization is the model as it is.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal, Self

import torch
from lightning import LightningModule
from torch import Tensor, nn

from backbones.inject import AdapterModule, Backbone, check_free, detach, modules_with

LAYERS = ("embedding", "hidden", "readout")  # wide are: the output alone, both sides, the input alone
CONSTANT = "constant"  # no side is wide, such as the bias of the head
PARAMETERIZATIONS: dict[str, dict[str, tuple[float, float]]] = {  # (a, b) of each kind of layer
    "standard": {"embedding": (0.0, 0.0), "hidden": (0.0, 0.5), "readout": (0.0, 0.5)},
    "ntk": {"embedding": (0.0, 0.0), "hidden": (0.5, 0.0), "readout": (0.5, 0.0)},
    "mup": {"embedding": (-0.5, 0.5), "hidden": (0.0, 0.5), "readout": (0.5, 0.5)},
    "mean_field": {"embedding": (0.0, 0.0), "hidden": (0.5, 0.0), "readout": (1.0, 0.0)},
}
# how the size of an update depends on that of the gradient
FAMILIES = {"sgd": "sgd", "adam": "adam", "adamw": "adam", "adam_atan2": "adam", "adafactor": "adafactor"}
DECOUPLED = ("adamw", "adam_atan2", "adafactor")  # weight decay apart from the gradient
ALIGNMENTS = {"full": 1.0, "none": 0.5}
# parameters that are added or looked up rather than multiplied with features: each row is a vector as wide as they are
ROWS = re.compile(r"(token|pos|prompt|table|latent|query)[^.]*$")
WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)
Shapes = Mapping[str, torch.Size]


@dataclass(frozen=True)
class Exponents:
    """How one kind of layer depends on the width: multiplier -a, initial std -b, learning rate -c, gradient -g."""

    a: float = 0.0
    b: float = 0.0
    c: float = 0.0
    g: float = 0.0

    def without_multiplier(self, family: str) -> "Exponents":
        """Of the same function with the multiplier inside the parameter, for parameters that no layer multiplies."""
        lr = {"sgd": 2 * self.a, "adam": self.a, "adafactor": 0.0}[family]
        return Exponents(0.0, self.a + self.b, self.c + lr, self.g - self.a)


def exponents(parameterization: str, optimizer: str, alignment: str, omega: float = 0.5) -> dict[str, Exponents]:
    """The exponents of every kind of layer.

    Args:
        parameterization: A key of ``PARAMETERIZATIONS``.
        optimizer: A key of ``FAMILIES``.
        alignment: ``full`` if updates align with the features as well as they can (rates fall faster), ``none`` if
            not at all.
        omega: Alignment of the readout's initial weights with the change of its features, 0.5 to 1.

    Raises:
        ValueError: If there are no exponents for one of them.
    """
    known: dict[str, tuple[str, Mapping[str, Any]]] = {
        "parameterization": (parameterization, PARAMETERIZATIONS),
        "optimizer": (optimizer, FAMILIES),
        "alignment": (alignment, ALIGNMENTS),
    }
    for name, (value, values) in known.items():
        if value not in values:
            raise ValueError(
                f"{name}={value!r}: there are no exponents for {parameterization!r} with {optimizer!r} and alignment "
                f"{alignment!r}; expected one of {', '.join(values)}"
            )
    if not 0.5 <= omega <= 1:
        raise ValueError(f"readout_alignment={omega}: expected 0.5 (none) to 1 (full)")
    layers, family, alpha = PARAMETERIZATIONS[parameterization], FAMILIES[optimizer], ALIGNMENTS[alignment]
    q = sum(layers["readout"])
    residual = max(0.0, omega - q)  # what the rates leave to the features before the readout
    most = {"embedding": residual, "hidden": alpha + residual, "readout": alpha}
    found = {}
    for layer, (a, b) in layers.items():
        g = a if layer == "readout" else a + q
        found[layer] = Exponents(a, b, most[layer] - a - {"adam": 0.0, "sgd": g, "adafactor": b}[family], g)
    return found


def layer_of(name: str, shape: torch.Size, base: torch.Size, owner: nn.Module, overrides: Mapping[str, str]) -> str:
    """Which kind of layer a parameter belongs to, by the dimensions that differ from the base model."""
    for pattern, layer in overrides.items():
        if re.search(pattern, name):
            return layer
    wide = [i for i, (here, there) in enumerate(zip(shape, base, strict=True)) if here != there]
    if not wide:
        return CONSTANT
    matrix = isinstance(owner, WEIGHTED) and name.endswith("weight")
    vector = len([size for size in shape if size > 1]) <= 1
    if not matrix and (vector or isinstance(owner, nn.Embedding) or ROWS.search(name)):
        return "embedding"  # also biases, norms and scales: vectors that nothing sums over
    first = 0 if matrix else len(shape) - 2  # (out, in, *kernel), or (..., out, in)
    return "hidden" if len(wide) > 1 else "embedding" if wide[0] <= first else "readout"


def ratio_of(layer: str, shape: torch.Size, base: torch.Size, owner: nn.Module) -> float:
    """Width of a parameter relative to the base model: of its fan-in, or of the fan-out of an embedding."""
    ratios = [here / there for here, there in zip(shape, base, strict=True) if here != there]
    if not ratios or layer == CONSTANT:
        return 1.0
    return ratios[-1] if layer != "embedding" or not isinstance(owner, WEIGHTED) else ratios[0]


def base_shape(shape: torch.Size, name: str, shapes: Shapes, widths: Mapping[int, float]) -> torch.Size:
    """The shape of a parameter in the base model; where it has none, every size that is a width of the backbone scales.

    Raises:
        ValueError: If the parameter has another number of dimensions there.
    """
    if name not in shapes:
        return torch.Size(round(size / widths.get(size, 1.0)) for size in shape)
    if len(shapes[name]) != len(shape):
        raise ValueError(f"base_width: {name} is {tuple(shape)} here and {tuple(shapes[name])} in the base model")
    return shapes[name]


def widths_of(model: nn.Module, shapes: Shapes) -> dict[int, float]:
    """Sizes that the width of the backbone decides, and their ratio to the base model's."""
    pairs = Counter(
        (here, here / there)
        for name, parameter in model.named_parameters()
        if len(shapes.get(name, ())) == parameter.dim()
        for here, there in zip(parameter.shape, shapes[name], strict=True)
        if here != there
    )
    return {size: ratio for (size, ratio), _ in reversed(pairs.most_common())}


def build_param_groups(
    model: nn.Module,
    base_shapes: Shapes,
    parameterization: str,
    optimizer: str,
    alignment: str = "full",
    *,
    lr: float,
    omega: float = 0.5,
    constants: Mapping[str, float] | None = None,
    eps: float = 1e-8,
    eps_mode: Literal["constant", "per_layer"] = "constant",
    weight_decay: float = 0.0,
    wd_mode: Literal["coupled", "independent"] = "coupled",
    layer_types: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Optimizer groups with a learning rate for each kind of layer: every trainable parameter is in exactly one.

    Args:
        model: The model.
        base_shapes: Shapes of the base model's parameters by name. Parameters that it lacks are compared by size.
        parameterization: See ``exponents``.
        optimizer: See ``exponents``.
        alignment: See ``exponents``.
        lr: Learning rate at the base width.
        omega: See ``exponents``.
        constants: Factors of ``lr`` by kind of layer, tuned at the base width.
        eps: Adam's epsilon at the base width.
        eps_mode: Whether epsilon shrinks with the gradients of each kind of layer.
        weight_decay: Decay of matrices; vectors and scalars are never decayed.
        wd_mode: ``independent`` keeps lr times decay at its value at the base width.
        layer_types: Kinds of layers by regular expressions of parameter names, over what the shapes say.

    Returns:
        Groups with ``params``, ``name``, ``layer_type``, ``k``, ``lr``, ``weight_decay`` and, for Adam, ``eps``.

    Raises:
        ValueError: On names that are not known or a base model that does not fit.
    """
    table, family = exponents(parameterization, optimizer, alignment, omega), FAMILIES[optimizer]
    table[CONSTANT] = Exponents()
    unknown = {*(constants or {})} - {*LAYERS} | {*(layer_types or {}).values()} - {*table}
    if unknown:
        raise ValueError(f"no kind of layer: {', '.join(sorted(unknown))}; expected {', '.join(table)}")
    if wd_mode == "independent" and optimizer not in DECOUPLED:
        raise ValueError(f"optimizer={optimizer}: independent weight decay needs one of {', '.join(DECOUPLED)}")
    widths = widths_of(model, base_shapes)
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        owner = model.get_submodule(name.rpartition(".")[0])
        base = base_shape(parameter.shape, name, base_shapes, widths)
        layer = layer_of(name, parameter.shape, base, owner, layer_types or {})
        k = ratio_of(layer, parameter.shape, base, owner)
        # a layer that a method made has no multiplier, nor has a vector: the same function without one
        multiplied = name.endswith("weight") and "multiplier" in owner._modules
        e = table[layer] if multiplied else table[layer].without_multiplier(family)
        decay = weight_decay if parameter.squeeze().dim() > 1 else 0.0
        parts = [layer, f"x{k:g}", *["multiplied"] * multiplied, *["undecayed"] * (not decay)]
        group = {
            "params": [],
            "name": "-".join(parts),
            "layer_type": layer,
            "k": k,
            "lr": lr * (constants or {}).get(layer, 1.0) * k**-e.c,
            "weight_decay": decay * (k**e.c if wd_mode == "independent" else 1.0),
        }
        if family == "adam":
            group["eps"] = eps * (k**-e.g if eps_mode == "per_layer" else 1.0)
        groups.setdefault((layer, k, multiplied, bool(decay)), group)["params"].append(parameter)
    return list(groups.values())


class Multiplier(AdapterModule):
    """Multiplies the weight of a layer, not its bias, by way of the input.

    Args:
        value: The factor ``k^-a``.
    """

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def scale_input(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0] * self.value, *args[1:])


def scaled_layers(backbone: Backbone, base: nn.Module) -> Iterator[tuple[str, Any, str, float]]:
    """Name, module, kind and relative width of every layer with a weight that a parameterization rescales."""
    shapes = {name: parameter.shape for name, parameter in base.named_parameters()}
    missing = sorted(dict(backbone.named_parameters()).keys() ^ shapes.keys())
    if missing:
        raise ValueError(
            f"base_width: here and at the base width are not the same parameters: {', '.join(missing[:3])} "
            f"({len(missing)} in all); the base model may differ in width alone, not in depth"
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
    """Bring a randomly initialised backbone, in place, from its own initial weights to those of a parameterization.

    Args:
        backbone: The backbone.
        base: The same backbone at the base width, with its own initial weights.
        parameterization: A key of ``PARAMETERIZATIONS``.
    """
    for name, module, layer, k in scaled_layers(backbone, base):
        a, b = PARAMETERIZATIONS[parameterization][layer]
        here, there = (float(weights.std()) for weights in (module.weight, base.get_parameter(f"{name}.weight")))
        if here and there:  # a head that starts at zero stays there
            # an init of timm or torch is as large at any width, or goes by the root of the fan-in: b = 0 or 1/2 already
            own = round(2 * math.log(there / here, k)) / 2
            module.weight.copy_(module.weight * k ** (own - b))
        if a:
            check_free(module, "multiplier")
            op = Multiplier(k**-a)
            module.add_module("multiplier", op)
            module.register_forward_pre_hook(op.scale_input)


@torch.no_grad()
def check_reached(backbone: Backbone, image: Tensor) -> None:
    """Refuse a backbone that reads the weight of a layer without calling the layer, past its multiplier."""
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
            "multiplied there: use parameterization=standard, which has no multipliers"
        )


class WidthScaled(LightningModule):
    """A task whose learning rates follow the width of its backbone.

    Args:
        parameterization: Scale the learning rates (and, from random weights, initial weights and multipliers) from a
            base width to that of the backbone: ``standard``, ``ntk``, ``mup`` or ``mean_field``; with pretrained
            weights ``standard`` (arXiv:2407.05872). ``none``: one rate for all.
        alignment: Whether learning rates assume updates that align with the features (``full``) or not (``none``,
            larger rates at large widths).
        base_width: Width of the model that ``lr`` was tuned at: its ``embed_dim``, heads as large as here; or the
            arguments of ``timm.create_model`` that make it, such as ``{embed_dim: 48, num_heads: [1, 2, 4, 8]}``.
        readout_alignment: Alignment of the classifier's initial weights with the change of its features, 0.5 to 1.
        lr_constants: Factors of ``lr`` for ``embedding``, ``hidden`` and ``readout`` layers, tuned at the base width.
        layer_types: Kinds of layers (``embedding``, ``hidden``, ``readout``, ``constant``) by regular expressions of
            parameter names, where they should not be told by shapes.
        adam_eps: Epsilon of ``adam`` and ``adamw``.
        eps_per_layer: Whether epsilon shrinks with the gradients of each kind of layer as the width grows.
        independent_weight_decay: Whether rate times decay stays as at the base width.
    """

    backbone: Backbone
    scales_over_widths: bool = True  # of a method: whether there is a rule for what it trains
    lr: float
    weight_decay: float
    optimizer_name: str

    def __init__(
        self,
        parameterization: Literal["none", "standard", "ntk", "mup", "mean_field"] = "none",
        alignment: Literal["full", "none"] = "full",
        base_width: int | dict[str, Any] | None = None,
        readout_alignment: float = 0.5,
        lr_constants: dict[str, float] | None = None,
        layer_types: dict[str, str] | None = None,
        adam_eps: float = 1e-8,
        eps_per_layer: bool = False,
        independent_weight_decay: bool = False,
    ) -> None:
        super().__init__()
        if parameterization == "none" and (base_width or lr_constants or layer_types):
            raise ValueError("base_width, lr_constants and layer_types belong to a parameterization: give one too")
        if parameterization != "none" and not self.scales_over_widths:
            raise ValueError(
                f"parameterization={parameterization!r}: {type(self).__name__} trains single entries or gates, "
                "for which there is no rule over widths; leave it out"
            )
        if parameterization != "none" and not base_width:
            raise ValueError(
                f"parameterization={parameterization!r} needs a base_width: the embed_dim of the model that lr was "
                "tuned at, such as --model.base_width 192"
            )
        for name, value in {"adam_eps": adam_eps, **(lr_constants or {})}.items():
            if value <= 0:
                raise ValueError(f"{name}={value}: expected a positive number")
        self.parameterization, self.base_width = parameterization, base_width
        self.adam_eps = adam_eps
        self.scaling: dict[str, Any] = {
            "alignment": alignment,
            "omega": readout_alignment,
            "constants": lr_constants,
            "layer_types": layer_types,
            "eps": adam_eps,
            "eps_mode": "per_layer" if eps_per_layer else "constant",
            "wd_mode": "independent" if independent_weight_decay else "coupled",
        }

    def scale_width(self) -> None:
        """Bring a new backbone to the parameterization; tasks call this when they have built one.

        Raises:
            ValueError: If the weights are given and not ours to scale, or the base model does not fit.
        """
        if self.parameterization == "none":
            return
        exponents(self.parameterization, self.optimizer_name, self.scaling["alignment"], self.scaling["omega"])
        pretrained = getattr(self, "pretrained", True)
        if pretrained is not False and self.parameterization != "standard":
            raise ValueError(
                f"parameterization={self.parameterization!r} scales initial weights, but pretrained={pretrained!r} "
                "gives them: use parameterization=standard, which then scales learning rates only, or pretrained=false"
            )
        base = self.at_base_width("meta" if pretrained is not False else "cpu").backbone
        heads = [{m.head_dim for m in net.modules() if hasattr(m, "head_dim")} for net in (self.backbone, base)]
        if heads[0] != heads[1] and self.parameterization in ("mup", "mean_field"):
            raise ValueError(
                f"base_width={self.base_width!r}: heads of {heads[1]} there, {heads[0]} here; {self.parameterization} "
                "keeps their size, so let num_heads follow the width"
            )
        if pretrained is False:
            rescale(self.backbone, base, self.parameterization)
            check_reached(self.backbone, self.example_input())
        else:
            list(scaled_layers(self.backbone, base))  # refuses a base model that does not fit

    def example_input(self) -> Tensor:
        """One input of zeros."""
        raise TypeError(f"{type(self).__name__} has no example input")

    def base_args(self) -> dict[str, Any]:
        """Arguments of timm that make the base model."""
        if not isinstance(self.base_width, int):
            return self.base_width or {}
        width = getattr(self.backbone, "embed_dim", None)
        heads = {m.num_heads for m in self.backbone.modules() if isinstance(getattr(m, "num_heads", None), int)}
        if not isinstance(width, int) or len(heads) > 1:
            raise ValueError(
                f"base_width={self.base_width}: {type(self.backbone).__name__} has not one width and number of heads; "
                "give the arguments of its base model, such as --model.base_width '{embed_dim: 48, num_heads: [...]}'"
            )
        if not heads:
            return {"embed_dim": self.base_width}
        size = width // heads.pop()
        if self.base_width % size:
            raise ValueError(f"base_width={self.base_width}: expected a multiple of the size of a head, {size}")
        return {"embed_dim": self.base_width, "num_heads": self.base_width // size}

    def at_base_width(self, device: str) -> Self:
        """This module with its backbone at the base width and random weights, not adapted.

        Raises:
            ValueError: If timm makes no such model.
        """
        given = {name: value for name, value in self.hparams.items() if not name.startswith("_")}
        for name in signature(WidthScaled.__init__).parameters:
            given.pop(name, None)
        args = {**(given.get("backbone_args") or {}), **self.base_args()}
        given |= {"backbone_args": args, "pretrained": False}
        try:
            with torch.random.fork_rng(devices=[]), torch.device(device):
                return type(self)(**given)
        except (TypeError, RuntimeError) as error:
            raise ValueError(f"base_width={self.base_width!r}: timm makes no such model: {error}") from error

    def base_shapes(self) -> Shapes:
        """Shapes of all parameters at the base width; of a method that chooses from data, without what it adds."""
        base: Any = self.at_base_width("meta")
        if getattr(base, "scorer", None) is None:
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                base.adapt(base.backbone)
        return {name: parameter.shape for name, parameter in base.named_parameters()}

    def width_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer, with the learning rate of each kind of layer."""
        settings = {"lr": self.lr, "weight_decay": self.weight_decay, **self.scaling}
        return build_param_groups(self, self.base_shapes(), self.parameterization, self.optimizer_name, **settings)

    def merge_into(self, backbone: Backbone) -> None:
        """Put the multipliers into the weights of a backbone, in place."""
        for module in list(modules_with(backbone, "multiplier")):
            op = detach(module, "multiplier")
            assert isinstance(op, Multiplier)
            module.weight.mul_(op.value)
