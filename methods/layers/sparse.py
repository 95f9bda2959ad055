"""Sparse trainable entries of frozen tensors, for all methods that choose single entries.

A chosen entry costs its value, gradient, optimizer state and index. Entries that are not chosen cost nothing and have
neither weight decay nor moments. ``train_entries`` makes the modules of a backbone use trained entries,
``merge_entries`` writes them into plain weights.
"""

from typing import Any

import torch
from timm.layers import LayerNorm, LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from backbones.anatomy import reads_bare_weight
from backbones.inject import Backbone, check_free, merge_parametrized, parametrize_in_place, swap_class
from methods.layers.operation import Operation

# for a larger share of chosen entries, the whole gradient of a matrix is faster than one dot product per entry:
# measured on a CPU at 384x1536, 192x768, 768x192 and 768x3072; for GPUs estimated from arithmetic and memory traffic
DENSE_SHARE = {"cpu": 2e-2, "cuda": 2e-3}
CHUNK = {"cpu": 2**18, "cuda": 2**26}  # elements gathered at a time, so that they fit into the cache of a CPU


class Entries(nn.Module):
    """Trained values (n,) of chosen entries of a frozen tensor.

    Args:
        tensor: The frozen tensor, which gives the initial values.
        indices: Flat positions of the entries (n,), ascending and unique.
    """

    def __init__(self, tensor: Tensor, indices: Tensor) -> None:
        super().__init__()
        indices = indices.to(tensor.device, torch.int32)
        self.values = nn.Parameter(tensor.detach().flatten()[indices.long()].float())
        # not saved, because the selection in the checkpoint gives them
        self.register_buffer("indices", indices, persistent=False)
        self.of_matrix = tensor.squeeze().dim() > 1

    def forward(self, tensor: Tensor) -> Tensor:
        """Tensor with the trained values in their places; only these values get a gradient."""
        flat = tensor.flatten().index_copy(0, self.indices.long(), self.values.to(tensor.dtype))  # type: ignore[operator]
        return flat.view_as(tensor)


def with_entries(weight: Tensor, indices: Tensor, values: Tensor) -> Tensor:
    """Copy of ``weight`` with ``values`` at flat ``indices``."""
    return weight.flatten().index_copy(0, indices.long(), values.to(weight.dtype)).view_as(weight)


class EntriesLinear(Operation):
    """``y = x W^T + b`` where some entries of W train; the full W is rebuilt in the backward pass, not kept.

    d values = (g^T x)[entries]. For many entries the whole product is computed, for few entries one dot product each.
    For very few entries, only the columns of x with an entry are kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor, indices: Tensor) -> Tensor:
        y = F.linear(x, with_entries(weight, indices, values), bias)
        ctx.few = len(indices) <= DENSE_SHARE.get(x.device.type, 0) * weight.numel()
        ctx.gathered = ctx.few and 2 * len(indices) <= weight.shape[1]
        kept = x.index_select(-1, indices.long() % weight.shape[1]) if ctx.gathered else x
        # in the type of y, because under autocast the product and its gradient have this type
        ctx.save_for_backward(kept.to(y.dtype), weight, values, indices)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, values, indices = ctx.saved_tensors
        flat_g, flat_x = g.flatten(0, -2), x.flatten(0, -2)
        d_x = g @ with_entries(weight, indices, values).to(g.dtype) if ctx.needs_input_grad[0] else None
        d_bias = flat_g.sum(0, dtype=torch.float32).to(weight.dtype) if ctx.needs_input_grad[2] else None
        if ctx.few:
            rows, columns = indices.long() // weight.shape[1], indices.long() % weight.shape[1]
            columns = torch.arange(len(rows), device=x.device) if ctx.gathered else columns
            d_values = product_entries(flat_g, flat_x, rows, columns)
        else:
            d_values = (flat_g.t() @ flat_x).flatten()[indices.long()].float()
        return d_x, None, d_bias, d_values, None


def product_entries(g: Tensor, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Entries (rows, columns) of ``g^T x`` for g (T, out) and x (T, in): one dot product over T each, in fp32."""
    total = torch.zeros(len(rows), device=g.device)
    # in slices of T, because a gather is fast within one row of g and x, whose entries are neighbours in memory
    step = max(CHUNK.get(g.device.type, 2**18) // len(rows), 1)
    for part_g, part_x in zip(g.split(step), x.split(step), strict=True):
        total += part_x.index_select(1, columns).float().mul_(part_g.index_select(1, rows)).sum(0)
    return total


class EntriesConv2d(Operation):
    """Convolution with bias b where some entries of W train; the backward pass computes the whole gradient of W."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor, indices: Tensor, options: Any
    ) -> Tensor:
        y = F.conv2d(x, with_entries(weight, indices, values), bias, *options)
        ctx.save_for_backward(x.to(y.dtype), weight, values, indices)
        ctx.options = options
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, values, indices = ctx.saved_tensors
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = conv2d_input(x.shape, with_entries(weight, indices, values).to(g.dtype), g, *ctx.options)
        d_bias = g.sum((0, 2, 3), dtype=torch.float32).to(weight.dtype) if ctx.needs_input_grad[2] else None
        d_values = conv2d_weight(x, weight.shape, g, *ctx.options).flatten()[indices.long()].float()
        return d_x, None, d_bias, d_values, None, None


class SparseModule(nn.Module):
    """Module with trained entries of ``weight`` (child ``weight_entries``) and ``bias`` (child ``bias_entries``)."""

    weight: Tensor
    bias: Tensor | None
    weight_entries: Entries | None
    bias_entries: Entries | None

    def effective(self, name: str) -> Tensor | None:
        """Parameter with its trained entries in place."""
        entries, tensor = self._modules.get(f"{name}_entries"), getattr(self, name)
        return tensor if entries is None else entries(tensor)


class SparseLinear(SparseModule, nn.Linear):  # type: ignore[misc]
    """Linear layer with trained entries."""

    def forward(self, input: Tensor) -> Tensor:
        entries, bias = self._modules.get("weight_entries"), self.effective("bias")
        if entries is None:
            return F.linear(input, self.weight, bias)
        # as one matrix, because torch 2.11 returns a view for more dimensions, and in-place addition to it fails
        y = EntriesLinear.apply(input.flatten(0, -2), self.weight, bias, entries.values, entries.indices)
        return y.view(*input.shape[:-1], self.out_features)


class SparseConv2d(SparseModule, nn.Conv2d):
    """Convolution with trained entries."""

    def forward(self, input: Tensor) -> Tensor:
        entries, bias = self._modules.get("weight_entries"), self.effective("bias")
        options: Any = (self.stride, self.padding, self.dilation, self.groups)
        if entries is None:
            return F.conv2d(input, self.weight, bias, *options)
        return EntriesConv2d.apply(input, self.weight, bias, entries.values, entries.indices, options)


class SparseLayerNorm(SparseModule, nn.LayerNorm):  # type: ignore[misc]
    """LayerNorm with trained entries of its affine map."""

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.effective("weight"), self.effective("bias"), self.eps)


class SparseTimmLayerNorm(SparseModule, LayerNorm):  # type: ignore[misc]
    """timm's LayerNorm with trained entries of its affine map."""

    forward = SparseLayerNorm.forward  # type: ignore[assignment]


class SparseLayerNorm2d(SparseModule, LayerNorm2d):  # type: ignore[misc]
    """timm's LayerNorm over the channels of (B, C, H, W) maps, with trained entries of its affine map."""

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
    """Make chosen entries of a backbone's parameters trainable, in place.

    Args:
        backbone: The frozen backbone.
        chosen: Flat indices by parameter name; an empty tensor is skipped.

    Raises:
        ValueError: If an index is out of range, or a parameter is stored as packed bytes.
    """
    for name, indices in chosen.items():
        if not len(indices):
            continue
        path, _, kind = name.rpartition(".")
        module, tensor = backbone.get_submodule(path), backbone.get_parameter(name)
        if int(indices.min()) < 0 or int(indices.max()) >= tensor.numel():
            raise ValueError(f"{name}: an index lies outside its {tensor.numel()} entries")
        if not tensor.is_floating_point():
            raise ValueError(f"{name}: single entries of packed bytes cannot train; take a backbone in full precision")
        entries, child = Entries(tensor, indices), f"{kind}_entries"
        plain = PLAIN.get(type(module), type(module))
        padded = isinstance(module, nn.Conv2d) and (module.padding_mode != "zeros" or isinstance(module.padding, str))
        if plain in SPARSE and not padded and not reads_bare_weight(backbone, path):
            swap_class(module, SPARSE[plain])
            check_free(module, child)
            module.add_module(child, entries)
        else:  # class tokens, position embeddings, layer scales, ...
            parametrize_in_place(module, kind, child, entries)


def merge_entries(backbone: Backbone) -> None:
    """Write the trained entries into the plain weights, bit for bit, and make the modules plain again."""
    merge_parametrized(backbone)
    for module in [m for m in backbone.modules() if type(m) in PLAIN]:
        for kind in ("weight", "bias"):
            entries: Any = module._modules.pop(f"{kind}_entries", None)
            if entries is not None:
                getattr(module, kind).flatten().index_copy_(0, entries.indices.long(), entries.values)
        swap_class(module, PLAIN[type(module)])
