"""Exponents of width parameterizations, kinds of layers, and optimizer groups that follow from both.

Everett et al., "Scaling Exponents Across Parameterizations and Optimizers", ICML 2024, arXiv:2407.05872. Let k be the
width relative to that of a base model. A layer computes ``k^-a W z`` with initial weights of standard deviation
``std0 k^-b``. W trains with the rate ``lr k^-c``, and its gradient has entries of size ``k^-g``. The exponents are
derived from the paper's definitions, not copied from its tables. At k = 1 no parameterization changes the model.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

LAYERS = ("embedding", "hidden", "readout")  # the width changes: the output; input and output; the input
CONSTANT = "constant"  # the width changes neither, such as for the bias of the head
PARAMETERIZATIONS: dict[str, dict[str, tuple[float, float]]] = {  # (a, b) of each kind of layer
    "standard": {"embedding": (0.0, 0.0), "hidden": (0.0, 0.5), "readout": (0.0, 0.5)},
    "ntk": {"embedding": (0.0, 0.0), "hidden": (0.5, 0.0), "readout": (0.5, 0.0)},
    "mup": {"embedding": (-0.5, 0.5), "hidden": (0.0, 0.5), "readout": (0.5, 0.5)},
    "mean_field": {"embedding": (0.0, 0.0), "hidden": (0.5, 0.0), "readout": (1.0, 0.0)},
}
# families of optimizers with the same dependence of the update on the size of the gradient
FAMILIES = {"sgd": "sgd", "adam": "adam", "adamw": "adam", "adam_atan2": "adam", "adafactor": "adafactor"}
DECOUPLED = ("adamw", "adam_atan2", "adafactor")  # weight decay is not part of the gradient
ALIGNMENTS = {"full": 1.0, "none": 0.5}
# parameters that are added to features or looked up, not multiplied with them: each row is as wide as the features
ROWS = re.compile(r"(token|pos|prompt|table|latent|query)[^.]*$")
WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)
Shapes = Mapping[str, torch.Size]


@dataclass(frozen=True)
class Exponents:
    """Exponents of the width for one kind of layer: multiplier -a, initial std -b, learning rate -c, gradient -g."""

    a: float = 0.0
    b: float = 0.0
    c: float = 0.0
    g: float = 0.0

    def without_multiplier(self, family: str) -> "Exponents":
        """Exponents of an equal function with the multiplier inside the parameter, for layers without a multiplier."""
        lr = {"sgd": 2 * self.a, "adam": self.a, "adafactor": 0.0}[family]
        return Exponents(0.0, self.a + self.b, self.c + lr, self.g - self.a)


def exponents(parameterization: str, optimizer: str, alignment: str, omega: float = 0.5) -> dict[str, Exponents]:
    """Exponents of each kind of layer.

    Args:
        parameterization: A key of ``PARAMETERIZATIONS``.
        optimizer: A key of ``FAMILIES``.
        alignment: ``full`` for updates that align with the features (rates fall faster), ``none`` for updates that do
            not align.
        omega: Alignment of the readout's initial weights with the change of its features, 0.5 to 1.

    Raises:
        ValueError: If there are no exponents for one of the arguments.
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
    residual = max(0.0, omega - q)  # exponent by which changes of the features before the readout must shrink
    most = {"embedding": residual, "hidden": alpha + residual, "readout": alpha}
    found = {}
    for layer, (a, b) in layers.items():
        g = a if layer == "readout" else a + q
        found[layer] = Exponents(a, b, most[layer] - a - {"adam": 0.0, "sgd": g, "adafactor": b}[family], g)
    return found


def layer_of(name: str, shape: torch.Size, base: torch.Size, owner: nn.Module, overrides: Mapping[str, str]) -> str:
    """Kind of layer of a parameter, by the dimensions that differ from the base model.

    Args:
        name: Name of the parameter.
        shape: Its shape.
        base: Its shape in the base model.
        owner: Its module.
        overrides: Kinds by regular expressions of names, which come before the shapes.
    """
    for pattern, layer in overrides.items():
        if re.search(pattern, name):
            return layer
    wide = [i for i, (here, there) in enumerate(zip(shape, base, strict=True)) if here != there]
    if not wide:
        return CONSTANT
    matrix = isinstance(owner, WEIGHTED) and name.endswith("weight")
    vector = len([size for size in shape if size > 1]) <= 1
    if not matrix and (vector or isinstance(owner, nn.Embedding) or ROWS.search(name)):
        return "embedding"  # also biases, norms and scales, because no product sums over these vectors
    first = 0 if matrix else len(shape) - 2  # (out, in, *kernel), or (..., out, in)
    return "hidden" if len(wide) > 1 else "embedding" if wide[0] <= first else "readout"


def ratio_of(layer: str, shape: torch.Size, base: torch.Size, owner: nn.Module) -> float:
    """Relative width of a parameter: its fan-in over that in the base model; for an embedding its fan-out."""
    ratios = [here / there for here, there in zip(shape, base, strict=True) if here != there]
    if not ratios or layer == CONSTANT:
        return 1.0
    return ratios[-1] if layer != "embedding" or not isinstance(owner, WEIGHTED) else ratios[0]


def base_shape(shape: torch.Size, name: str, shapes: Shapes, widths: Mapping[int, float]) -> torch.Size:
    """Shape of a parameter in the base model.

    Args:
        shape: Shape of the parameter.
        name: Its name.
        shapes: Shapes of the base model by name. If the name is missing, the sizes in ``widths`` are scaled.
        widths: Sizes that depend on the width, with their ratio to the base model.

    Raises:
        ValueError: If the parameter has another number of dimensions in the base model.
    """
    if name not in shapes:
        return torch.Size(round(size / widths.get(size, 1.0)) for size in shape)
    if len(shapes[name]) != len(shape):
        raise ValueError(f"width_base: {name} is {tuple(shape)} here and {tuple(shapes[name])} in the base model")
    return shapes[name]


def widths_of(model: nn.Module, shapes: Shapes) -> dict[int, float]:
    """Sizes that depend on the width of the backbone, with their ratio to the base model."""
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
    decayed: Callable[[str, nn.Parameter], bool] = lambda name, parameter: parameter.squeeze().dim() > 1,
) -> list[dict[str, Any]]:
    """Parameter groups with a learning rate for each kind of layer; each trainable parameter is in exactly one.

    Args:
        model: The model.
        base_shapes: Shapes of the base model's parameters by name; see ``base_shape`` for missing names.
        parameterization: See ``exponents``.
        optimizer: See ``exponents``.
        alignment: See ``exponents``.
        lr: Learning rate at the base width.
        omega: See ``exponents``.
        constants: Factors of ``lr`` by kind of layer, tuned at the base width.
        eps: Adam's epsilon at the base width.
        eps_mode: ``constant``: one epsilon. ``per_layer``: epsilon shrinks with the gradients of each kind of layer.
        weight_decay: Decay of the parameters that ``decayed`` names.
        wd_mode: ``coupled``: one weight decay. ``independent``: lr times decay keeps its value at the base width.
        layer_types: Kinds of layers by regular expressions of parameter names; they come before the shapes.
        decayed: Whether a parameter, given with its name, has weight decay; by default each matrix.

    Returns:
        Groups with ``params``, ``name``, ``layer_type``, ``k``, ``lr``, ``weight_decay`` and, for Adam, ``eps``.

    Raises:
        ValueError: If a name is unknown or the base model does not fit.
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
        # vectors and the layers of a method have no multiplier, so they use the exponents without one
        multiplied = name.endswith("weight") and "multiplier" in owner._modules
        e = table[layer] if multiplied else table[layer].without_multiplier(family)
        decay = weight_decay if decayed(name, parameter) else 0.0
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
