"""VeRA: Vector-based Random Matrix Adaptation (arXiv:2310.11454).

``W = W0 + diag(b) B diag(d) A`` with trained vectors d (r,) and b (m,), and frozen random A (r, n) and B (m, r) that
all layers of one shape share.
"""

from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from backbones.anatomy import call_qkv
from backbones.inject import Backbone, check_free
from methods.core.base import PEFTMethod
from methods.layers.low_rank import LowRank
from methods.layers.low_rank_layers import add_low_rank, merge_low_rank, takes_dropout
from methods.layers.low_rank_targets import Target, find_targets


class RandomMatrices(nn.Module):
    """Frozen A (r, n) and B (m, r). Their sizes and a seed determine them, therefore no file holds them.

    Args:
        outputs: Output channels m of an update.
        inputs: Input channels n of an update.
        rank: Rank r.
        seed: Seed of both.
    """

    A: Tensor
    B: Tensor

    def __init__(self, outputs: int, inputs: int, rank: int, seed: int) -> None:
        super().__init__()
        # a generator of its own, on the CPU: otherwise the values would depend on the device and on earlier draws
        generator = torch.Generator("cpu").manual_seed(seed)
        for name, shape in {"A": (rank, inputs), "B": (outputs, rank)}.items():
            matrix = torch.empty(shape, device="cpu")
            nn.init.kaiming_uniform_(matrix, generator=generator)
            self.register_buffer(name, matrix, persistent=False)


class VeRAUpdate(LowRank):
    """Update of K blocks of rows of one layer, each with its own d and b.

    Args:
        matrices: A and B of each block, which all layers share that have a block of this shape.
        target: The blocks.
        d_init: Initial value of d.
        dropout: Dropout probability of the input of A, in training.
    """

    def __init__(self, matrices: list[RandomMatrices], target: Target, d_init: float, dropout: float) -> None:
        nn.Module.__init__(self)  # because LowRank's own creates trained A and B
        self.matrices = tuple(matrices)  # not a list of modules, otherwise each layer would register them as children
        self.rows, self.scale, self.dropout, self.dropout_at = target.rows, 1.0, dropout, "input"
        # of one dimension, because weight decay and width_scaling take two dimensions for a matrix
        self.d = nn.Parameter(torch.full((sum(len(shared.A) for shared in matrices),), d_init))
        self.b = nn.Parameter(torch.zeros(sum(len(shared.B) for shared in matrices)))
        order = None if target.order is None else target.order.to(self.b.device)
        self.register_buffer("order", order, persistent=False)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Matrices diag(d) A (K r, n) and diag(b) B (sum of sizes, r), in the precision of d and b."""
        A, B = (torch.cat([shared.get_buffer(name) for shared in self.matrices]) for name in ("A", "B"))
        return self.d[:, None] * A, self.b[:, None] * B


class VeRA(PEFTMethod):
    """Vector-based random matrix adaptation (Kopiczko et al., ICLR 2024, arXiv:2310.11454).

    Args:
        vera_targets: Linear layers and convolutions by the end of their name, such as ``proj``, ``fc1`` or
            ``blocks.0.mlp.fc2``. ``q``, ``k`` and ``v`` mean queries, keys and values of every attention, also where
            one layer computes all of them; ``qkv`` means one update of that layer. By default q and v, and in a network
            without attention every layer outside stem and classifier.
        vera_rank: Rank r of each update; it may exceed the width of a layer.
        vera_d_init: Initial value of d; b starts at 0.
        vera_dropout: Dropout probability of the input of A; 0 for grouped convolutions and those with a standardised
            weight.
        vera_seed: Seed of A and B.
    """

    def __init__(
        self,
        vera_targets: list[str] | None = None,
        vera_rank: int = 256,
        vera_d_init: float = 0.1,
        vera_dropout: float = 0.0,
        vera_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if vera_rank < 1:
            raise ValueError(f"vera_rank={vera_rank}: expected a positive rank")
        if vera_d_init == 0 or not isfinite(vera_d_init):
            raise ValueError(
                f"vera_d_init={vera_d_init}: expected a finite number other than 0, such as 0.1; at 0 nothing would "
                "train, because b starts at 0 and neither b nor d would have a gradient"
            )
        if not 0 <= vera_dropout < 1:
            raise ValueError(f"vera_dropout={vera_dropout}: expected a probability of at least 0 and below 1")
        if vera_seed < 0:
            raise ValueError(f"vera_seed={vera_seed}: expected a seed of at least 0")
        if vera_targets is not None and not vera_targets:
            raise ValueError("vera_targets is empty: expected names such as q, v, proj, fc1, or leave it out")
        self.vera_targets, self.vera_rank = vera_targets, vera_rank
        self.vera_d_init, self.vera_dropout, self.vera_seed = vera_d_init, vera_dropout, vera_seed

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        targets = find_targets(backbone, self.vera_targets, tuple(self.head_names), option="vera_targets")
        call_qkv(backbone)
        check_free(backbone, "vera")
        backbone.vera = nn.ModuleDict()
        for name, target in targets.items():
            layer: Any = backbone.get_submodule(name)
            if self.vera_dropout and not takes_dropout(layer):
                raise ValueError(
                    f"vera_dropout={self.vera_dropout}: {name} is a grouped convolution or standardises its weight, so "
                    "its update acts through the weight alone; set vera_dropout=0, or name other layers in vera_targets"
                )
            matrices = [self.shared_matrices(backbone, layer, last - first) for first, last in target.rows]
            add_low_rank(layer, VeRAUpdate(matrices, target, self.vera_d_init, self.vera_dropout))

    def shared_matrices(self, backbone: Backbone, layer: Any, outputs: int) -> RandomMatrices:
        """A and B for a block of a layer's rows; they are made for the first block of each shape."""
        inputs = layer.weight[0].numel()
        shape = f"{outputs}x{inputs}"
        if shape not in backbone.vera:
            matrices = RandomMatrices(outputs, inputs, self.vera_rank, self.vera_seed)
            backbone.vera[shape] = matrices.to(layer.weight.device)
        return backbone.vera[shape]

    def merge_into(self, backbone: Backbone) -> None:
        merge_low_rank(backbone)
        call_qkv(backbone, False)
        del backbone.vera
        super().merge_into(backbone)
