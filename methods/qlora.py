"""QLoRA: Efficient Finetuning of Quantized LLMs (arXiv:2305.14314).

``y = dequantize(W4) x + s B A x`` with frozen weights W4 in four bits and trained A and B.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.anatomy import call_qkv, linear_layers
from backbones.inject import Backbone, swap_class
from methods.dora import DoRALinear
from methods.layers import nf4
from methods.layers.low_rank import compute_dtype
from methods.layers.low_rank_layers import LoRALinear
from methods.layers.operation import Operation
from methods.lora import LoRA


class NF4Product(Operation):
    """``y = x W^T + b``; W is made from its bytes in both passes, so that no tensor is kept between them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, dense: Callable[[torch.dtype], Tensor]) -> Tensor:
        ctx.dense = dense
        x = x.to(compute_dtype(x))
        return F.linear(x, dense(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        d_x = g @ ctx.dense(g.dtype) if ctx.needs_input_grad[0] else None
        return d_x, g.sum(0) if ctx.needs_input_grad[1] else None, None


class NF4Linear(nn.Linear):
    """Linear layer with a frozen weight in four bits, and the scales of its blocks in eight bits.

    The state dict holds the bytes under the name of the weight, so that no delta contains them. It does not hold the
    scales. Both are made from the backbone when a model is built. All are stored as integers, because a cast of the
    model does not change integers.
    """

    weight_index: Tensor
    weight_scales: Tensor
    kernel: str

    def pack(self, kernel: str) -> None:
        """Replace the weight by its bytes."""
        # always on the CPU, otherwise the frozen weights of a checkpoint could depend on the device
        packed, absmax = nf4.quantize(self.weight if self.weight.is_meta else self.weight.cpu())
        index, absmax2, offset = nf4.quantize_absmax(absmax)
        device, self.kernel = self.weight.device, kernel
        del self.weight
        self.register_buffer("weight", packed.to(device))
        self.register_buffer("weight_index", index.to(device), persistent=False)
        self.register_buffer(
            "weight_scales", torch.cat([absmax2, offset]).view(torch.int32).to(device), persistent=False
        )

    def unpack(self) -> None:
        """Make the weight a parameter again, with the dequantised values."""
        weight = self.dense()
        del self.weight, self.weight_index, self.weight_scales, self.kernel
        self.weight = nn.Parameter(weight)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        scales = self.weight_scales.view(torch.float32)
        absmax = nf4.dequantize_absmax(self.weight_index, scales[:-1], scales[-1:])
        shape = (self.out_features, self.in_features)
        # bitsandbytes 0.50 gives wrong values on a CPU if a row ends inside a block
        if self.kernel == "bitsandbytes" and (self.weight.is_cuda or self.in_features % nf4.BLOCK == 0):
            packed = self.weight.view(-1, 1)
            return torch.ops.bitsandbytes.dequantize_4bit(packed, absmax, nf4.BLOCK, "nf4", shape, dtype)
        return nf4.dequantize(self.weight, absmax, shape, dtype)

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        # as one matrix, because torch 2.11 returns a view for more dimensions, and an in-place update of it fails
        return NF4Product.apply(x.flatten(0, -2), bias, self.dense).view(*x.shape[:-1], self.out_features)

    def forward(self, input: Tensor) -> Tensor:
        return self.product(input, self.bias)


class QLoRALinear(NF4Linear, LoRALinear):
    """Four-bit linear layer with a low-rank update."""

    def forward(self, input: Tensor) -> Tensor:
        return self.lora.add(self.product(input, self.bias), self.lora.drop_input(input))


class QDoRALinear(NF4Linear, DoRALinear):
    """Four-bit linear layer with trained directions and magnitudes of its rows."""

    forward = DoRALinear.unmerged


PACKED: dict[type[nn.Module], type[NF4Linear]] = {
    nn.Linear: NF4Linear,
    LoRALinear: QLoRALinear,
    DoRALinear: QDoRALinear,
}
PLAIN = {packed: plain for plain, packed in PACKED.items()}


class QLoRA(LoRA):
    """LoRA on a backbone in four bits (Dettmers et al., NeurIPS 2023, arXiv:2305.14314).

    All linear layers but the classifier are stored in NF4 with double quantisation. ``--method qlora+dora`` is QDoRA.

    Args:
        qlora_kernel: Kernel that makes weights from bytes. ``torch``: plain torch. ``bitsandbytes``: the package of
            this name, which is made for GPUs and must be installed.
    """

    def __init__(self, qlora_kernel: Literal["torch", "bitsandbytes"] = "torch", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.qlora_kernel = qlora_kernel
        if qlora_kernel == "bitsandbytes":
            try:
                import bitsandbytes  # noqa: F401 (registers its operators)
            except ImportError as error:
                raise ValueError(
                    "qlora_kernel='bitsandbytes': the package is not installed; pip install bitsandbytes, or leave the "
                    "option out"
                ) from error

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        call_qkv(backbone)  # because packed bytes cannot be read as a weight
        packed = []
        for name, linear in linear_layers(backbone, tuple(self.head_names)).items():
            if type(linear) not in PACKED:
                continue
            swap_class(linear, PACKED[type(linear)])
            assert isinstance(linear, NF4Linear)
            linear.pack(self.qlora_kernel)
            if isinstance(linear, QDoRALinear):
                linear.lora.reset(linear.dense())
            packed += [f"backbone.{name}.{b}" for b in ("weight", "weight_index", "weight_scales")]
        if not packed:
            raise ValueError(
                f"QLoRA stores linear layers in four bits, and {type(backbone).__name__} has none beside its "
                "classifier: use LoRA there"
            )
        # otherwise DDP sends these buffers to all ranks in every step, although they are equal and never change
        self._ddp_params_and_buffers_to_ignore = packed

    def merge_into(self, backbone: Backbone) -> None:
        """Merge into the dequantised fp32 weights, because a second rounding to four bits would change the outputs."""
        for linear in [module for module in backbone.modules() if isinstance(module, NF4Linear)]:
            linear.unpack()
            swap_class(linear, PLAIN[type(linear)])
        super().merge_into(backbone)
