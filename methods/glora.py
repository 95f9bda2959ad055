"""One-for-All: Generalized LoRA for Parameter-Efficient Fine-tuning (arXiv:2306.07967).

``y = (W0 + W0 * A + B) x + W0 c + D * b0 + E + b0``, where ``*`` multiplies entries, and each of A to E has a form.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.anatomy import call_qkv, linear_layers
from backbones.inject import Backbone, check_free, modules_with, swap_class
from methods.core.base import PEFTMethod

Form = Literal["lora", "vector", "scalar", "none"]


class Support(nn.Module):
    """Trained tensor of one form, which starts at 0.

    Args:
        rows: Rows of the tensor.
        columns: Columns of the tensor; the other forms act alike on all of them.
        form: ``lora``: a product (rows, r) by (r, columns), 0 by its first factor. ``vector``: one value a row.
            ``scalar``: one value.
        rank: Rank r of ``lora``.
    """

    def __init__(self, rows: int, columns: int, form: Form, rank: int) -> None:
        super().__init__()
        lora = form == "lora"
        self.down = nn.Parameter(torch.zeros(rows, rank) if lora else torch.zeros(rows if form == "vector" else 1))
        self.up = nn.Parameter(nn.init.xavier_uniform_(torch.empty(rank, columns))) if lora else None

    def value(self) -> Tensor:
        """Tensor (rows, columns), or (rows, 1) or (1, 1), which can be broadcast to it."""
        return self.down[:, None] if self.up is None else self.down @ self.up


class GLoRALinear(nn.Linear):
    """A linear layer with supports A to E of its weight (out, in) and bias (out,), in the child ``glora``."""

    glora: nn.ModuleDict

    def supported(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias with all supports."""
        supports: Any = self.glora
        value = {name: support.value() for name, support in supports.items()}
        weight = self.weight + self.weight * value.get("A", 0.0) + value.get("B", 0.0)
        if self.bias is None:
            return weight, None
        bias = self.bias[:, None]  # a column, because c is one
        bias = bias + bias * value.get("D", 0.0) + value.get("E", 0.0)
        bias = bias + self.weight @ value["C"] if "C" in value else bias
        return weight, bias.squeeze(1)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, *self.supported())


class GLoRA(PEFTMethod):
    """Generalized LoRA with one form of each support for all layers (Chavan et al., 2023, arXiv:2306.07967).

    The paper trains all forms at once and searches one for each layer; here the forms are options, and their defaults
    are the largest forms of its search space. Supports C, D and E act on biases, so layers without a bias have none.
    The backward pass keeps the changed weight of each layer, beside the frozen one.

    Args:
        glora_rank: Rank r of ``lora``.
        glora_a: Form of A, which scales the weight. ``lora``: low rank. ``vector``: one factor for each output.
            ``scalar``: one factor. ``none``: no A.
        glora_b: Form of B, which is added to the weight, as for A.
        glora_c: Form of c, a prompt that is added to the input of the frozen weight. ``lora``: a product (in, r) by
            (r, 1). ``vector``: one value for each input. ``none``: no c.
        glora_d: Form of D, which scales the bias. ``vector``: one factor for each output. ``scalar``: one factor.
            ``none``: no D.
        glora_e: Form of E, which is added to the bias, as for D.
    """

    def __init__(
        self,
        glora_rank: int = 4,
        glora_a: Form = "lora",
        glora_b: Form = "lora",
        glora_c: Literal["lora", "vector", "none"] = "lora",
        glora_d: Literal["vector", "scalar", "none"] = "vector",
        glora_e: Literal["vector", "scalar", "none"] = "vector",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if glora_rank < 1:
            raise ValueError(f"glora_rank={glora_rank}: expected a positive rank")
        self.glora_rank = glora_rank
        self.forms: dict[str, Form] = {"A": glora_a, "B": glora_b, "C": glora_c, "D": glora_d, "E": glora_e}
        if set(self.forms.values()) == {"none"}:
            raise ValueError("glora_a to glora_e are all none: expected one form or more, otherwise nothing trains")

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        used = set(self.used_names())
        layers = [
            (linear, supports)
            for name, linear in linear_layers(backbone, tuple(self.head_names)).items()
            if type(linear) is nn.Linear and f"{name}.weight" in used and (supports := self.supports(linear))
        ]
        if not layers:
            raise ValueError(
                f"GLoRA changes linear layers of blocks, and {type(backbone).__name__} has none that take the forms "
                "of glora_a to glora_e: use ssf, lora or bitfit"
            )
        call_qkv(backbone)
        for linear, supports in layers:
            check_free(linear, "glora")
            linear.glora = supports
            swap_class(linear, GLoRALinear)

    def supports(self, linear: nn.Linear) -> nn.ModuleDict:
        """Supports of a layer by their letter."""
        outputs, inputs = linear.weight.shape
        sizes = {"A": (outputs, inputs), "B": (outputs, inputs), "C": (inputs, 1), "D": (outputs, 1), "E": (outputs, 1)}
        forms = {name: form for name, form in self.forms.items() if form != "none"}
        names = [name for name in forms if linear.bias is not None or name in "AB"]
        return nn.ModuleDict({name: Support(*sizes[name], forms[name], self.glora_rank) for name in names})

    def merge_into(self, backbone: Backbone) -> None:
        for linear in modules_with(backbone, "glora"):
            weight, bias = linear.supported()
            linear.weight.copy_(weight)
            if bias is not None:
                linear.bias.copy_(bias)
            del linear.glora
            swap_class(linear, nn.Linear)
        call_qkv(backbone, False)
        super().merge_into(backbone)
