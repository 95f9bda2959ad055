"""LoRA: Low-Rank Adaptation of Large Language Models (arXiv:2106.09685).

``W = W0 + s B A`` with trained A (r, in) and B (out, r).
"""

from math import sqrt
from typing import Any, ClassVar, Literal

from backbones.anatomy import ends
from backbones.inject import Backbone, check_free, swap_class
from methods.core.base import PEFTMethod
from methods.layers.low_rank import LoRALinear, LowRank, Rows, find_targets, merge_low_rank

DEFAULT_TARGETS = ["q", "v"]


class LoRA(PEFTMethod):
    """Low-rank adaptation (Hu et al., ICLR 2022, arXiv:2106.09685).

    Args:
        lora_targets: Linear layers by the end of their name, such as ``proj``, ``fc1`` or ``blocks.0.mlp.fc2``. For a
            fused qkv layer, ``q``, ``k`` and ``v`` each mean an update of that third, and ``qkv`` means one update
            with a common A.
        lora_rank: Rank r of each update.
        lora_alpha: Strength alpha of the updates.
        lora_scaling: Factor s of an update. ``alpha``: alpha itself, as in the vision literature. ``alpha/r``: as in
            the paper. ``alpha/sqrt(r)``: rank-stabilised (arXiv:2312.03732).
        lora_dropout: Dropout probability.
        lora_dropout_at: Place of dropout. ``hidden``: between A and B, as in PETL-ViT. ``input``: on the input of A, as
            in NOAH and HF PEFT.
        lora_ranks: Ranks that differ from ``lora_rank``, by the end of the layer's name; 0 for no update.
    """

    update_class: ClassVar[type[LowRank]] = LowRank
    layer_class: ClassVar[type[LoRALinear]] = LoRALinear

    def __init__(
        self,
        lora_targets: list[str] = DEFAULT_TARGETS,
        lora_rank: int = 8,
        lora_alpha: float = 1.0,
        lora_scaling: Literal["alpha", "alpha/r", "alpha/sqrt(r)"] = "alpha",
        lora_dropout: float = 0.0,
        lora_dropout_at: Literal["hidden", "input"] = "hidden",
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
        if not lora_targets:
            raise ValueError("lora_targets is empty: expected names such as q, v, proj, fc1")
        self.lora_targets, self.lora_rank, self.lora_ranks = list(lora_targets), lora_rank, dict(lora_ranks or {})
        self.lora_alpha, self.lora_scaling = lora_alpha, lora_scaling
        self.lora_dropout, self.lora_dropout_at = lora_dropout, lora_dropout_at

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        layers = find_targets(backbone, self.lora_targets, tuple(self.head_names))
        unknown = [end for end in self.lora_ranks if not any(ends(name, end) for name in layers)]
        if unknown:
            raise ValueError(f"lora_ranks names {', '.join(unknown)}, which no layer of lora_targets ends with")
        ranks = {n: next((r for end, r in self.lora_ranks.items() if ends(n, end)), self.lora_rank) for n in layers}
        if not any(ranks.values()):
            raise ValueError(f"lora_ranks={self.lora_ranks} leaves no layer of lora_targets an update")
        for name, rows in layers.items():
            rank, linear = ranks[name], backbone.get_submodule(name)
            largest = min(linear.in_features, rows[0][1] - rows[0][0])
            if rank > largest:
                option = "lora_rank" if rank == self.lora_rank else "lora_ranks"
                raise ValueError(f"{option}={rank} is more than {name} can have: expected 1 to {largest}")
            if rank:
                self.add_update(linear, rank, rows)

    def add_update(self, linear: Any, rank: int, rows: Rows) -> None:
        """Add the update of one layer."""
        check_free(linear, "lora")
        factor = {"alpha": 1.0, "alpha/r": 1 / rank, "alpha/sqrt(r)": 1 / sqrt(rank)}[self.lora_scaling]
        options = (rank, self.lora_alpha * factor, rows, self.lora_dropout, self.lora_dropout_at)
        linear.lora = self.update_class(linear, *options)
        swap_class(linear, self.layer_class)

    def merge_into(self, backbone: Backbone) -> None:
        merge_low_rank(backbone)
        super().merge_into(backbone)
