"""Revisiting the Parameter Efficiency of Adapters from the Perspective of Precision Redundancy (arXiv:2307.16867).

``W = std(w) Q((w - mean(w)) / std(w)) + mean(w)`` for a trained matrix w, where Q gives the nearest of 2^bits levels.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.anatomy import call_qkv, ends, linear_layers
from backbones.blocks import channels_first, pre_norm_blocks, width
from backbones.inject import Backbone, check_free, swap_class
from backbones.projections import attention_rows
from checkpoints import packed
from methods.adaptformer import ParallelBottleneck
from methods.core.base import PEFTMethod
from methods.layers import low_bit
from methods.layers.low_rank import LowRank
from methods.layers.low_rank_layers import add_low_rank, merge_low_rank

SETTINGS = {
    "method": "bi_form",
    "bits": "bi_bits",
    "h": "bi_dim",
    "scale": "bi_scale",
    "bihead": "bi_head",
    "codebook": "bi_codebook",
    "num_classes": "num_classes",
}
"""Options of the model by their names in the header of a packed file."""


class LowBit(nn.Module):
    """Layer that stores fp32 latents and computes with their low-bit matrices."""

    bits: int
    codebook: low_bit.Codebook
    cached: tuple[Any, tuple[Tensor, ...]] | None = None  # versions of the latents, and their matrices

    def quantised_latents(self) -> tuple[Tensor, ...]:
        """Low-bit matrices of the current latents."""
        raise TypeError(f"{type(self).__name__} makes no matrices")

    def quantised(self, latent: Tensor) -> Tensor:
        return low_bit.effective(latent, self.bits, self.codebook)

    def matrices(self) -> tuple[Tensor, ...]:
        """Low-bit matrices. An evaluation without gradients computes them once."""
        latents = list(self.parameters(recurse=False))
        graded = torch.is_grad_enabled() and any(latent.requires_grad for latent in latents)
        if self.training or graded or torch.compiler.is_compiling():  # a graph cannot look at the versions of tensors
            self.cached = None
            return self.quantised_latents()
        state = [(latent.data_ptr(), latent._version) for latent in latents]
        if self.cached is None or self.cached[0] != state:
            with torch.inference_mode(False), torch.no_grad():  # so that evaluations in any mode can use them
                self.cached = state, self.quantised_latents()
        return self.cached[1]

    # these two clear the cache, because a write through ``.data`` (a swap of averaged weights) changes no version

    def train(self, mode: bool = True) -> "LowBit":
        self.cached = None
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any) -> None:
        self.cached = None
        super()._load_from_state_dict(*args)


class LowBitLinear(LowBit, nn.Linear):
    """``y = x W^T`` with a low-bit W and no bias."""

    def quantised_latents(self) -> tuple[Tensor, ...]:
        return (self.quantised(self.weight),)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, *self.matrices())


class LowBitLowRank(LowBit, LowRank):
    """Low-rank update with low-bit A and B, one pair for each block of rows."""

    def quantised_latents(self) -> tuple[Tensor, ...]:
        count = len(self.rows)
        return tuple(torch.cat([self.quantised(part) for part in latent.chunk(count)]) for latent in (self.A, self.B))

    def factors(self) -> tuple[Tensor, Tensor]:
        A, B = self.matrices()
        return A, B


def is_in_thirds(rows: dict[str, Tensor]) -> bool:
    """Whether the rows of a layer are those of q, k and v, a third each."""
    return [int(part[0]) // len(part) for part in rows.values()] == [0, 1, 2]


class BiAdapter(PEFTMethod):
    """Low-bit adapters, Bi-AdaptFormer and Bi-LoRA (Jie et al., ICCV 2023, arXiv:2307.16867).

    Args:
        bi_form: Form of the adapter. ``adaptformer``: a bottleneck parallel to each MLP. ``lora``: low-rank updates of
            q and v.
        bi_bits: Bits of a weight: 1, 2, 4 or 8; 32 for the same adapter without quantisation.
        bi_dim: Width h of the bottleneck (32 in the paper), or rank of each update (1 in the paper).
        bi_scale: Factor s of the adapter's output; the paper searches {0.01, 0.1, 1, 10, 100} for each dataset.
        bi_dropout: Dropout probability of the h channels.
        bi_head: Whether the classifier is a 1-bit matrix without bias too (``bihead`` in the paper's code).
        bi_codebook: Levels of the quantiser. ``l1_optimal``: levels with the smallest mean absolute error.
            ``official``: levels of the paper's code; they differ at 8 bits only, where the error is 4.6 times larger.
    """

    mergeable = False  # True with bi_form=lora
    unmergeable = "the adapters of Bi-AdaptFormer are not linear; bi_form=lora merges"

    def __init__(
        self,
        bi_form: Literal["adaptformer", "lora"] = "adaptformer",
        bi_bits: int = 1,
        bi_dim: int = 32,
        bi_scale: float = 1.0,
        bi_dropout: float = 0.1,
        bi_head: bool = False,
        bi_codebook: low_bit.Codebook = "l1_optimal",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if bi_form not in ("adaptformer", "lora"):
            raise ValueError(f"bi_form={bi_form!r}: expected adaptformer or lora")
        if bi_bits not in low_bit.BITS:
            raise ValueError(f"bi_bits={bi_bits}: expected 1, 2, 4, 8, or 32 for no quantisation")
        if bi_codebook not in ("l1_optimal", "official"):
            raise ValueError(f"bi_codebook={bi_codebook!r}: expected l1_optimal or official")
        if bi_dim < 1:
            raise ValueError(f"bi_dim={bi_dim}: expected a bottleneck of at least 1 channel")
        if bi_scale <= 0:
            raise ValueError(f"bi_scale={bi_scale}: expected a positive factor; at 0 nothing would train")
        if not 0 <= bi_dropout < 1:
            raise ValueError(f"bi_dropout={bi_dropout}: expected a probability of at least 0 and below 1")
        self.bi_form, self.bi_bits, self.bi_dim, self.bi_scale = bi_form, bi_bits, bi_dim, bi_scale
        self.bi_dropout, self.bi_head, self.bi_codebook = bi_dropout, bi_head, bi_codebook
        self.mergeable = bi_form == "lora"

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        if self.bi_form == "adaptformer":
            self.add_bottlenecks(backbone)
        else:
            self.add_updates(backbone)
        for name in self.head_names if self.bi_head else ():
            head = backbone.get_submodule(name)
            if not isinstance(head, nn.Linear) or not (head.weight.is_meta or head.weight.std() > 0):
                raise ValueError(
                    f"bi_head: the classifier {name} must be a linear layer whose initial weights differ from each "
                    "other; leave head_init=zero, or bi_head, out"
                )
            self.quantise(head, LowBitLinear, bits=1)
            if head.bias is not None:  # a buffer of zeros, because the plain model has this key in its state dict
                zeros = torch.zeros_like(head.bias)
                del head.bias
                head.register_buffer("bias", zeros)

    def add_bottlenecks(self, backbone: Backbone) -> None:
        for block in pre_norm_blocks(backbone, "Bi-AdaptFormer adds a branch to the MLP of each block"):
            check_free(block, "adapter")
            sizes = (width(block), self.bi_dim, self.bi_scale, self.bi_dropout)
            block.adapter = op = ParallelBottleneck(*sizes, bias=False, spatial=channels_first(block))
            for linear in (op.down, op.up):
                self.quantise(linear, LowBitLinear, self.bi_bits)
            self.init_up(op.up.weight)
            # as in AdaptFormer: the input of the adapter is the residual stream, and drop path does not drop it
            block.norm2.register_forward_pre_hook(op.keep_input)
            block.drop_path2.register_forward_hook(op.hook)

    def add_updates(self, backbone: Backbone) -> None:
        rows = {name: parts for name, parts in attention_rows(backbone).items() if ends(name, "qkv")}
        layers = {n: layer for n, layer in linear_layers(backbone).items() if n in rows and is_in_thirds(rows[n])}
        if not layers:
            raise ValueError(
                f"bi_form=lora: {type(backbone).__name__} has no linear layers qkv with q, k and v of one size in one "
                "piece each; use bi_form=adaptformer, or --method lora"
            )
        call_qkv(backbone)
        for name, linear in layers.items():
            dim = linear.out_features // 3
            if self.bi_dim > min(dim, linear.in_features):
                raise ValueError(f"bi_dim={self.bi_dim} is more than {name} can have: expected 1 to {dim}")
            blocks = ((0, dim), (2 * dim, 3 * dim))
            update: Any = LowRank(linear, self.bi_dim, self.bi_scale, blocks, self.bi_dropout)
            self.quantise(update, LowBitLowRank, self.bi_bits)
            self.init_up(update.B)
            add_low_rank(linear, update)

    def quantise(self, layer: Any, cls: type[LowBit], bits: int) -> None:
        if bits < 32:
            swap_class(layer, cls)
            layer.bits, layer.codebook = bits, self.bi_codebook

    def init_up(self, up: Tensor) -> None:
        """Draw small values for the up projection, because zeros have no standard deviation to quantise by."""
        if self.bi_bits < 32:
            nn.init.trunc_normal_(up, std=1e-3, a=-2e-3, b=2e-3)

    def merge_into(self, backbone: Backbone) -> None:
        merge_low_rank(backbone)
        call_qkv(backbone, False)
        for head in [module for module in backbone.modules() if isinstance(module, LowBitLinear)]:
            head.weight.copy_(head.matrices()[0])
            if head.bias is not None:
                bias = head.bias
                del head.bias
                head.bias = nn.Parameter(bias)
            for name in ("bits", "codebook", "cached"):
                vars(head).pop(name, None)
            swap_class(head, nn.Linear)
        super().merge_into(backbone)

    # the packed file

    def stored(self) -> dict[str, Tensor]:
        """Latents of the adapter and tensors of the classifier, by name and in the order of a packed file."""
        found: dict[str, Tensor] = {}
        for name, module in self.backbone.named_modules():
            if self.bi_form == "adaptformer" and isinstance(module, ParallelBottleneck) and ends(name, "adapter"):
                found |= {f"{name}.down": module.down.weight, f"{name}.up": module.up.weight}
            elif self.bi_form == "lora" and isinstance(module, LowRank) and ends(name, "qkv.lora"):
                attention = name.removesuffix("qkv.lora")
                for row, down, up in zip("qv", module.A.chunk(2), module.B.chunk(2), strict=True):
                    found |= {f"{attention}lora_{row}.down": down, f"{attention}lora_{row}.up": up}
        for name in self.head_names:
            parameters = self.backbone.get_submodule(name).named_parameters()
            found |= {f"{name}.{kind}": parameter for kind, parameter in parameters}
        return found

    def records(self, bits: int | None = None, head: bool | None = None) -> list[packed.Record]:
        """Tensors of a packed file of this model.

        Args:
            bits: Bits of the adapter's weights; by default those of this model.
            head: Whether the classifier is a 1-bit matrix; by default as in this model.
        """
        bits, head = self.bi_bits if bits is None else bits, self.bi_head if head is None else head
        shapes = {name: tuple(tensor.shape) for name, tensor in self.stored().items()}
        heads = {f"{name}.{kind}" for name in self.head_names for kind in ("weight", "bias")}
        found = [packed.Record(n, s, bits) for n, s in shapes.items() if n not in heads]
        if head:
            return found + [packed.Record(n, s, 1) for n, s in shapes.items() if n in heads and n.endswith("weight")]
        return found + [packed.Record(n, s, 32) for n, s in shapes.items() if n in heads]

    def storage_bytes(self) -> int:
        records = self.records()
        return super().storage_bytes() - sum(4 * record.size - record.nbytes for record in records)
