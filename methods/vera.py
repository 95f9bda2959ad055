"""VeRA: Vector-based Random Matrix Adaptation (arXiv:2310.11454).

``W = W0 + diag(b) B diag(d) A`` with trained vectors d (r,) and b (m,), and frozen random A (r, n) and B (m, r) that
all layers of one shape share.
"""

from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from backbones.inject import Backbone, check_free, swap_class
from methods.core.base import PEFTMethod
from methods.layers.low_rank import LoRALinear, LowRank, Rows, find_targets, merge_low_rank

DEFAULT_TARGETS = ["q", "v"]


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
        matrices: A and B that all layers of this shape share.
        rows: Blocks of m output rows each.
        d_init: Initial value of d.
        dropout: Dropout probability of the input of A, in training.
    """

    def __init__(self, matrices: RandomMatrices, rows: Rows, d_init: float, dropout: float) -> None:
        nn.Module.__init__(self)  # because LowRank's own creates trained A and B
        self.matrices = (matrices,)  # in a tuple, otherwise each layer would register them as its child
        self.rows, self.scale, self.dropout, self.dropout_at = rows, 1.0, dropout, "input"
        # of one dimension, because weight decay and width_scaling take two dimensions for a matrix
        self.d = nn.Parameter(torch.full((len(rows) * matrices.A.shape[0],), d_init))
        self.b = nn.Parameter(torch.zeros(len(rows) * matrices.B.shape[0]))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Matrices diag(d) A (K r, n) and diag(b) B (K m, r), in the precision of d and b."""
        (shared,) = self.matrices
        d, b = (vector.view(len(self.rows), -1, 1) for vector in (self.d, self.b))
        return (d * shared.A).flatten(0, 1), (b * shared.B).flatten(0, 1)


class VeRA(PEFTMethod):
    """Vector-based random matrix adaptation (Kopiczko et al., ICLR 2024, arXiv:2310.11454).

    Args:
        vera_targets: Linear layers by the end of their name, such as ``proj``, ``fc1`` or ``blocks.0.mlp.fc2``. For a
            fused qkv layer, ``q``, ``k`` and ``v`` each mean an update of that third, and ``qkv`` means one update.
        vera_rank: Rank r of each update; it may exceed the width of a layer.
        vera_d_init: Initial value of d; b starts at 0.
        vera_dropout: Dropout probability of the input of A.
        vera_seed: Seed of A and B.
    """

    def __init__(
        self,
        vera_targets: list[str] = DEFAULT_TARGETS,
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
        if not vera_targets:
            raise ValueError("vera_targets is empty: expected names such as q, v, proj, fc1")
        self.vera_targets, self.vera_rank = list(vera_targets), vera_rank
        self.vera_d_init, self.vera_dropout, self.vera_seed = vera_d_init, vera_dropout, vera_seed

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        layers = find_targets(backbone, self.vera_targets, tuple(self.head_names), option="vera_targets")
        check_free(backbone, "vera")
        backbone.vera = nn.ModuleDict()
        for name, rows in layers.items():
            linear: Any = backbone.get_submodule(name)
            check_free(linear, "lora")  # LoRALinear and merge_low_rank use this name
            outputs, inputs = rows[0][1] - rows[0][0], linear.in_features
            shape = f"{outputs}x{inputs}"
            if shape not in backbone.vera:
                matrices = RandomMatrices(outputs, inputs, self.vera_rank, self.vera_seed)
                backbone.vera[shape] = matrices.to(linear.weight.device)
            linear.lora = VeRAUpdate(backbone.vera[shape], rows, self.vera_d_init, self.vera_dropout)
            swap_class(linear, LoRALinear)

    def merge_into(self, backbone: Backbone) -> None:
        merge_low_rank(backbone)
        del backbone.vera
        super().merge_into(backbone)
