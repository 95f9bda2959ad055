"""LoRA: Low-Rank Adaptation of Large Language Models (arXiv:2106.09685).

``W = W0 + s B A`` with trained A (r, in) and B (out, r).
"""

from math import sqrt
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from backbones.anatomy import call_qkv, ends
from backbones.inject import Backbone, modules_with
from methods.core.base import PEFTMethod
from methods.layers.low_rank import LowRank, of_rows
from methods.layers.low_rank_layers import LoRALinear, add_low_rank, merge_low_rank, takes_dropout
from methods.layers.low_rank_targets import Target, find_targets


class LoRA(PEFTMethod):
    """Low-rank adaptation (Hu et al., ICLR 2022, arXiv:2106.09685).

    Args:
        lora_targets: Linear layers and convolutions by the end of their name, such as ``proj``, ``fc1`` or
            ``blocks.0.mlp.fc2``. ``q``, ``k`` and ``v`` mean queries, keys and values of every attention, also where
            one layer computes all of them; ``qkv`` means one update of that layer with a common A. By default q and v,
            and in a network without attention every layer outside stem and classifier.
        lora_rank: Rank r of each update. With the default targets, a layer that is too narrow for it gets the largest
            that it can have. A convolution is updated as a matrix (out, in / groups * height * width).
        lora_alpha: Strength alpha of the updates.
        lora_scaling: Factor s of an update. ``alpha``: alpha itself, as in the vision literature. ``alpha/r``: as in
            the paper. ``alpha/sqrt(r)``: rank-stabilised (arXiv:2312.03732).
        lora_dropout: Dropout probability; 0 for grouped convolutions and those with a standardised weight.
        lora_dropout_at: Place of dropout. ``hidden``: between A and B, as in PETL-ViT. ``input``: on the input of A, as
            in NOAH and HF PEFT.
        lora_init: Initial factors. ``zero_b``: A Kaiming uniform, B zero, so that training starts from exactly the
            frozen backbone. ``trunc_normal``: both normal of std 0.02, as in NOAH's code. ``orthogonal``: both with
            orthogonal rows or columns, as in VeLoRA's code. ``pissa``: the r largest singular values and vectors of the
            weight (arXiv:2404.02948). ``olora``: r columns of Q and rows of R of its QR decomposition
            (arXiv:2406.01775). The last two take their first product off the weight, so that training starts from the
            frozen backbone; files hold the start too, and have twice the size.
        lora_b_lr_scale: Factor of the learning rate of B; LoRA+ (arXiv:2402.12354) has 16.
        lora_ranks: Ranks that differ from ``lora_rank``, by the end of the layer's name; 0 for no update.
    """

    shardable = True
    update_class: ClassVar[type[LowRank]] = LowRank
    layer_class: ClassVar[type[LoRALinear]] = LoRALinear

    def __init__(
        self,
        lora_targets: list[str] | None = None,
        lora_rank: int = 8,
        lora_alpha: float = 1.0,
        lora_scaling: Literal["alpha", "alpha/r", "alpha/sqrt(r)"] = "alpha",
        lora_dropout: float = 0.0,
        lora_dropout_at: Literal["hidden", "input"] = "hidden",
        lora_init: Literal["zero_b", "trunc_normal", "orthogonal", "pissa", "olora"] = "zero_b",
        lora_b_lr_scale: float = 1.0,
        lora_ranks: dict[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if lora_rank < 1:
            raise ValueError(f"lora_rank={lora_rank}: expected a positive rank")
        for name, rank in (lora_ranks or {}).items():
            if rank < 0:
                raise ValueError(f"lora_ranks[{name!r}]={rank}: expected a positive rank, or 0 for a layer without")
        if lora_alpha <= 0:
            raise ValueError(f"lora_alpha={lora_alpha}: expected a positive number; at 0 nothing would train")
        if not 0 <= lora_dropout < 1:
            raise ValueError(f"lora_dropout={lora_dropout}: expected a probability of at least 0 and below 1")
        if lora_dropout and lora_dropout_at == "hidden" and lora_init in ("pissa", "olora"):
            raise ValueError(
                f"lora_init={lora_init} with lora_dropout={lora_dropout}: expected lora_dropout_at input, because "
                "dropout between A and B would not act alike on the update and on its start"
            )
        if lora_b_lr_scale <= 0:
            raise ValueError(f"lora_b_lr_scale={lora_b_lr_scale}: expected a positive factor")
        if lora_targets is not None and not lora_targets:
            raise ValueError("lora_targets is empty: expected names such as q, v, proj, fc1, or leave it out")
        self.lora_targets, self.lora_rank, self.lora_ranks = lora_targets, lora_rank, dict(lora_ranks or {})
        self.lora_alpha, self.lora_scaling = lora_alpha, lora_scaling
        self.lora_dropout, self.lora_dropout_at, self.lora_init = lora_dropout, lora_dropout_at, lora_init
        self.lora_b_lr_scale = lora_b_lr_scale

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        targets = find_targets(backbone, self.lora_targets, tuple(self.head_names))
        layers = {name: backbone.get_submodule(name) for name in targets}
        call_qkv(backbone)
        for name, rank in self.find_ranks({n: targets[n].largest_rank(layer) for n, layer in layers.items()}).items():
            if rank:
                self.add_update(name, layers[name], rank, targets[name])

    def find_ranks(self, largest: dict[str, int]) -> dict[str, int]:
        """Rank of each layer's update; ``largest`` holds the largest rank that it can have.

        Raises:
            ValueError: If a rank is too large, or a name in ``lora_ranks`` is unknown.
        """
        unknown = [end for end in self.lora_ranks if not any(ends(name, end) for name in largest)]
        if unknown:
            raise ValueError(f"lora_ranks names {', '.join(unknown)}, which no layer of lora_targets ends with")
        own: dict[str, int] = {}
        for name in largest:
            own |= dict([(name, rank) for end, rank in self.lora_ranks.items() if ends(name, end)][:1])
        common = self.lora_rank
        narrow = self.lora_targets is None and common <= max(largest.values())
        ranks = {name: own.get(name, min(common, most) if narrow else common) for name, most in largest.items()}
        if not any(ranks.values()):
            raise ValueError(f"lora_ranks={self.lora_ranks} leaves no layer of lora_targets an update")
        for name, rank in ranks.items():
            if rank > largest[name]:
                option = "lora_ranks" if name in own else "lora_rank"
                raise ValueError(f"{option}={rank} is more than {name} can have: expected 1 to {largest[name]}")
        return ranks

    def add_update(self, name: str, layer: Any, rank: int, target: Target) -> None:
        """Add the update of one layer."""
        if self.lora_dropout and not takes_dropout(layer):
            raise ValueError(
                f"lora_dropout={self.lora_dropout}: {name} is a grouped convolution or standardises its weight, so its "
                "update acts through the weight alone; set lora_dropout=0, or name other layers in lora_targets"
            )
        factor = {"alpha": 1.0, "alpha/r": 1 / rank, "alpha/sqrt(r)": 1 / sqrt(rank)}[self.lora_scaling]
        place = (target.rows, self.lora_dropout, self.lora_dropout_at, target.order)
        update = self.update_class(layer, rank, self.lora_alpha * factor, *place)
        draw(update, self.lora_init, layer.weight)
        add_low_rank(layer, update, self.layer_class)

    def param_groups(self) -> list[dict[str, Any]]:
        groups = super().param_groups()
        if self.lora_b_lr_scale == 1:
            return groups
        factors = {id(layer.lora.B) for layer in modules_with(self.backbone, "lora")}
        split = [
            group
            | {"params": [p for p in group["params"] if (id(p) in factors) == scaled]}
            | {"lr": group.get("lr", self.lr) * (self.lora_b_lr_scale if scaled else 1.0)}
            for group in groups
            for scaled in (False, True)
        ]
        return [group for group in split if group["params"]]

    def merge_into(self, backbone: Backbone) -> None:
        merge_low_rank(backbone)
        call_qkv(backbone, False)
        super().merge_into(backbone)


@torch.no_grad()
def draw(update: LowRank, init: str, weight: Tensor) -> None:
    """Draw the factors of an update of a frozen weight; see ``lora_init``. With ``zero_b`` they stay as made."""
    if init in ("pissa", "olora"):
        rank, matrix = update.B.shape[1], update.matrix(weight).float()
        decompose = principal if init == "pissa" else orthonormal
        pairs = [decompose(matrix[first:last], rank, update.scale) for first, last in update.rows]
        update.start_from(torch.cat([A for A, _ in pairs]), torch.cat([B for _, B in pairs]))
        return
    for factor in (*update.A.chunk(len(update.rows)), *of_rows(update.B, update.rows)):
        if init == "trunc_normal":
            nn.init.trunc_normal_(factor, std=0.02)
        elif init == "orthogonal":
            nn.init.orthogonal_(factor)


def principal(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r), whose product ``scale B A`` is the best approximation of a weight (out, in)."""
    U, S, V = torch.linalg.svd(weight, full_matrices=False)
    root = (S[:rank] / scale).sqrt()
    return root[:, None] * V[:rank], U[:, :rank] * root


def orthonormal(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r): the first rows of R and columns of Q of a weight (out, in); without ``scale``."""
    Q, R = torch.linalg.qr(weight)
    return R[:rank], Q[:, :rank]
