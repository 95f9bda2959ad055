"""Chosen entries of frozen tensors that train, and nothing else of them: the form that all selective methods share.

A chosen entry costs its value, gradient and optimizer state (and an index); weight decay, moments and DDP traffic never
see the entries beside it. ``train_entries`` makes a backbone's modules use such values, ``fold_entries`` writes them
into plain weights.
"""

from typing import Any

import torch
from timm.layers import LayerNorm, LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from methods.inject import Backbone, become, check_free

DENSE_SHARE = 2e-3  # above this share of a matrix, its whole gradient is faster than one dot product per entry
CHUNK = 2**24  # elements of the two gathered factors of those dot products


class Entries(nn.Module):
    """Trained values (n,) of chosen entries of a frozen tensor.

    Args:
        tensor: The frozen tensor, whose values they start from.
        indices: Flat positions of the entries (n,), ascending and unique.
    """

    def __init__(self, tensor: Tensor, indices: Tensor) -> None:
        super().__init__()
        indices = indices.to(tensor.device, torch.int64)
        self.values = nn.Parameter(tensor.detach().flatten()[indices].float())
        # rebuilt from the selection, which the checkpoint holds already
        self.register_buffer("indices", indices.to(torch.int32), persistent=False)

    def forward(self, tensor: Tensor) -> Tensor:
        """The tensor with the trained values in their places; only they get a gradient."""
        flat = tensor.flatten().index_copy(0, self.indices.long(), self.values.to(tensor.dtype))  # type: ignore[operator]
        return flat.view_as(tensor)


def filled(weight: Tensor, indices: Tensor, values: Tensor) -> Tensor:
    """A copy of ``weight`` with ``values`` at flat ``indices``."""
    return weight.flatten().index_copy(0, indices.long(), values.to(weight.dtype)).view_as(weight)


class EntriesLinear(torch.autograd.Function):
    """``y = x W^T + b`` where some entries of W train; W with them filled in is rebuilt rather than kept.

    d values = (g^T x)[entries]: of the whole product where they are many, entry by entry where they are few. Then only
    those columns of x are kept that have an entry.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor, indices: Tensor) -> Tensor:
        y = F.linear(x, filled(weight, indices, values), bias)
        columns = None
        if len(indices) <= DENSE_SHARE * weight.numel() and 2 * len(indices) <= weight.shape[1]:
            columns = indices.long() % weight.shape[1]
        # under autocast the product ran in the type of y, and so does its gradient
        kept = x if columns is None else x[..., columns]
        ctx.save_for_backward(kept.to(y.dtype), weight, values, indices)
        ctx.gathered = columns is not None
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, values, indices = ctx.saved_tensors
        flat_g, flat_x = g.flatten(0, -2), x.flatten(0, -2)
        d_x = g @ filled(weight, indices, values).to(g.dtype) if ctx.needs_input_grad[0] else None
        d_bias = flat_g.sum(0, dtype=torch.float32).to(weight.dtype) if ctx.needs_input_grad[2] else None
        rows, columns = indices.long() // weight.shape[1], indices.long() % weight.shape[1]
        if ctx.gathered:
            d_values = (flat_g[:, rows] * flat_x).sum(0, dtype=torch.float32)
        elif len(indices) <= DENSE_SHARE * weight.numel():
            d_values = dots(flat_g, flat_x, rows, columns)
        else:
            d_values = (flat_g.t() @ flat_x).flatten()[indices.long()].float()
        return d_x, None, d_bias, d_values, None


def dots(g: Tensor, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Entries (rows, columns) of ``g^T x`` for g (T, out) and x (T, in), one dot product over T each."""
    g, x = g.t().contiguous(), x.t().contiguous()  # a row-major gather is what makes this fast
    step = max(CHUNK // g.shape[1], 1)
    parts = [
        (g[rows[i : i + step]] * x[columns[i : i + step]]).sum(1, dtype=torch.float32)
        for i in range(0, len(rows), step)
    ]
    return torch.cat(parts)


class EntriesConv2d(torch.autograd.Function):
    """The same for a convolution; its whole weight gradient is formed and dropped again."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor, indices: Tensor, options: Any
    ) -> Tensor:
        y = F.conv2d(x, filled(weight, indices, values), bias, *options)
        ctx.save_for_backward(x.to(y.dtype), weight, values, indices)
        ctx.options = options
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, values, indices = ctx.saved_tensors
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = conv2d_input(x.shape, filled(weight, indices, values).to(g.dtype), g, *ctx.options)
        d_bias = g.sum((0, 2, 3), dtype=torch.float32).to(weight.dtype) if ctx.needs_input_grad[2] else None
        d_values = conv2d_weight(x, weight.shape, g, *ctx.options).flatten()[indices.long()].float()
        return d_x, None, d_bias, d_values, None, None


class SparseModule(nn.Module):
    """A module some entries of whose ``weight`` or ``bias`` train, as ``weight_entries`` and ``bias_entries``."""

    weight: Tensor
    bias: Tensor | None
    weight_entries: Entries | None
    bias_entries: Entries | None

    def effective(self, name: str) -> Tensor | None:
        """The parameter with its trained entries in place."""
        entries, tensor = self._modules.get(f"{name}_entries"), getattr(self, name)
        return tensor if entries is None else entries(tensor)


class SparseLinear(SparseModule, nn.Linear):  # type: ignore[misc]
    """A linear layer some entries of which train."""

    def forward(self, input: Tensor) -> Tensor:
        entries, bias = self._modules.get("weight_entries"), self.effective("bias")
        if entries is None:
            return F.linear(input, self.weight, bias)
        return EntriesLinear.apply(input, self.weight, bias, entries.values, entries.indices)


class SparseConv2d(SparseModule, nn.Conv2d):
    """A convolution some entries of which train."""

    def forward(self, input: Tensor) -> Tensor:
        entries, bias = self._modules.get("weight_entries"), self.effective("bias")
        options: Any = (self.stride, self.padding, self.dilation, self.groups)
        if entries is None:
            return F.conv2d(input, self.weight, bias, *options)
        return EntriesConv2d.apply(input, self.weight, bias, entries.values, entries.indices, options)


class SparseLayerNorm(SparseModule, nn.LayerNorm):  # type: ignore[misc]
    """A LayerNorm some entries of whose affine map train."""

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.effective("weight"), self.effective("bias"), self.eps)


class SparseTimmLayerNorm(SparseModule, LayerNorm):  # type: ignore[misc]
    """The same for timm's LayerNorm."""

    forward = SparseLayerNorm.forward  # type: ignore[assignment]


class SparseLayerNorm2d(SparseModule, LayerNorm2d):  # type: ignore[misc]
    """The same for timm's LayerNorm over the channels of (B, C, H, W) maps."""

    def forward(self, x: Tensor) -> Tensor:
        return SparseLayerNorm.forward(self, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # type: ignore[arg-type]


SPARSE: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: SparseLinear,
    nn.Conv2d: SparseConv2d,
    nn.LayerNorm: SparseLayerNorm,
    LayerNorm: SparseTimmLayerNorm,
    LayerNorm2d: SparseLayerNorm2d,
}
PLAIN = {sparse: plain for plain, sparse in SPARSE.items()}


def train_entries(backbone: Backbone, chosen: dict[str, Tensor]) -> None:
    """Let chosen entries of a backbone's parameters train, in place.

    Args:
        backbone: The frozen backbone.
        chosen: Flat indices by parameter name; an empty tensor makes no parameter.

    Raises:
        ValueError: If an index is out of range, or a parameter's module has no sparse form.
    """
    for name, indices in chosen.items():
        if not len(indices):
            continue
        path, _, kind = name.rpartition(".")
        module, tensor = backbone.get_submodule(path), backbone.get_parameter(name)
        if int(indices.min()) < 0 or int(indices.max()) >= tensor.numel():
            raise ValueError(f"{name}: an index lies outside its {tensor.numel()} entries")
        if type(module) not in PLAIN:
            padded = isinstance(module, nn.Conv2d) and module.padding_mode != "zeros"
            if type(module) not in SPARSE or padded:
                raise ValueError(f"{name}: single entries of a {type(module).__name__} cannot train")
            become(module, SPARSE[type(module)])
        check_free(module, f"{kind}_entries")
        module.add_module(f"{kind}_entries", Entries(tensor, indices))


def fold_entries(backbone: Backbone) -> None:
    """Write the trained values into their places, bit for bit, and make the modules plain again."""
    for module in [m for m in backbone.modules() if type(m) in PLAIN]:
        for kind in ("weight", "bias"):
            entries: Any = module._modules.pop(f"{kind}_entries", None)
            if entries is not None:
                getattr(module, kind).flatten().index_copy_(0, entries.indices.long(), entries.values)
        become(module, PLAIN[type(module)])
