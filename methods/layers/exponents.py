"""Exponents of width parameterizations, kinds of layers, and optimizer groups that follow from both.

Everett et al., "Scaling Exponents Across Parameterizations and Optimizers", ICML 2024, arXiv:2407.05872. With k the
width relative to that of a base model, a layer computes ``k^-a W z`` from weights of standard deviation
``std0 k^-b``, and W learns at the rate ``lr k^-c``; its gradient has entries of size ``k^-g``. The exponents are
derived from the paper's definitions, not copied from its tables. At k = 1 every parameterization is the model as it is.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

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
        raise ValueError(f"omega={omega}: expected 0.5 (none) to 1 (full)")
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
        raise ValueError(f"width_base: {name} is {tuple(shape)} here and {tuple(shapes[name])} in the base model")
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
