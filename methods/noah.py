"""NOAH: Neural Prompt Search (arXiv:2206.04673), the training of its super-net.

A super-net has adapters, LoRA and prompts of the largest size in each block. A step trains a sub-net, which uses the
first s hidden channels of an adapter, the first s ranks of an update and the first s prompts: ``A[:s]``, ``B[:, :s]``.
``train.py noah_search`` then searches for the best sub-net.
"""

import re
from random import Random
from typing import Any, Self

from torch import Tensor, nn
from torch.nn import functional as F

from backbones.inject import Backbone, modules_with, swap_class
from lightning_modules.batch import Batch
from lightning_modules.seed import derived_seed
from methods.adapter import Bottleneck
from methods.core.base import PEFTMethod
from methods.layers.low_rank import LowRank
from methods.vpt import Prompt

Sizes = dict[str, list[int]]
"""Size for each block with modules of a kind, first to last; 0 for none. The kinds are those of ``SLICED``."""


class SlicedBottleneck(Bottleneck):
    """Adapter that uses its first ``size`` hidden channels."""

    size: int

    def update(self, feature: Tensor) -> Tensor:
        hidden = self.dropout(self.act(F.linear(feature, self.down.weight[: self.size], self.down.bias[: self.size])))
        # the bias of an adapter of size 0 is not used either; times 0, so that it has a gradient for DDP
        return F.linear(hidden, self.up.weight[:, : self.size], self.up.bias) * (self.size > 0)

    @property
    def largest(self) -> int:
        return self.down.out_features

    def count(self) -> int:
        """Number of parameters in use."""
        channels = self.down.in_features
        return self.size * (2 * channels + 1) + channels * (self.size > 0)


class SlicedLowRank(LowRank):
    """Low-rank update that uses its first ``size`` ranks."""

    size: int

    def factors(self) -> tuple[Tensor, Tensor]:
        A, B = super().factors()
        rank = max(self.size, 1)  # no matrices without entries: size 0 is a rank of 1 times 0
        A = A.unflatten(0, (len(self.rows), -1))[:, :rank].flatten(0, 1)
        return A, B[:, :rank] * (self.size > 0)

    @property
    def largest(self) -> int:
        return self.B.shape[1]

    def count(self) -> int:
        """Number of parameters in use."""
        return self.size * (len(self.rows) * self.A.shape[1] + len(self.B))


class SlicedPrompt(Prompt):
    """Prompts of which the first ``size`` are used."""

    size: int

    def rows(self) -> Tensor:
        return super().rows()[: self.size].clone()  # because torch counts no FLOPs of a layer that reads a view

    @property
    def largest(self) -> int:
        return len(self.tokens)

    def count(self) -> int:
        """Number of parameters in use."""
        return self.size * self.tokens.shape[1]


SLICED: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "adapter": (Bottleneck, SlicedBottleneck),
    "lora": (LowRank, SlicedLowRank),
    "prompt": (Prompt, SlicedPrompt),
}


class NOAH(PEFTMethod):
    """Super-net of NOAH, stacked as in `--method adapter+lora+vpt+noah` (Zhang et al., 2022, arXiv:2206.04673).

    ``adapter_dim``, ``lora_rank`` and ``prompt_length`` are the largest sizes. A training step draws, for each of the
    three kinds, a number of blocks, and a size for each of the first so many blocks; the others have none. The draws
    are equal on all ranks. An evaluation uses the largest sizes.

    Args:
        noah_sizes: Sizes that a block can have.
        noah_blocks: Numbers of blocks, from the first one on, that can have modules of a kind; by default a quarter,
            half, three quarters and all of them, 3, 6, 9 and 12 of 12.
    """

    standalone = False
    uncompilable = "each step trains a sub-net of other sizes; compile the fit of the sub-net that the search finds"

    def __init__(
        self,
        noah_sizes: list[int] = [1, 5, 10],  # noqa: B006
        noah_blocks: list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not noah_sizes or min(noah_sizes) < 1:
            raise ValueError(f"noah_sizes={noah_sizes}: expected positive sizes")
        if noah_blocks is not None and (not noah_blocks or min(noah_blocks) < 0):
            raise ValueError(f"noah_blocks={noah_blocks}: expected numbers of blocks of at least 0")
        self.noah_sizes, self.noah_blocks = list(noah_sizes), noah_blocks
        self.chosen: Sizes = {}  # sizes of an evaluation; the largest where a kind is missing

    def after_adapt(self, backbone: Backbone) -> None:
        super().after_adapt(backbone)
        for kind, (plain, sliced) in SLICED.items():
            for owner in modules_with(backbone, kind):
                module = owner._modules[kind]
                if type(module) is plain:
                    swap_class(module, sliced)
        kinds = modules_of_kinds(backbone)
        if not kinds:
            raise ValueError("NOAH samples adapters, LoRA and prompts: use it as in --method adapter+lora+vpt+noah")
        for kind, blocks in kinds.items():
            least = min(module.largest for modules in blocks.values() for module in modules)
            if max(self.noah_sizes) > least:
                raise ValueError(
                    f"noah_sizes={self.noah_sizes}: the {kind} of a block has a size of {least}; expected sizes up to "
                    "it, or a larger adapter_dim, lora_rank or prompt_length"
                )
            if self.noah_blocks is not None and max(self.noah_blocks) > len(blocks):
                raise ValueError(
                    f"noah_blocks={self.noah_blocks}: expected at most {len(blocks)}, the number of blocks"
                )
        self.use(self.chosen, backbone)

    def before_merge(self, backbone: Backbone) -> None:
        self.use(self.chosen, backbone)  # as an evaluation, also after a training step
        for layer in modules_with(backbone, "lora"):
            if isinstance(layer.lora, SlicedLowRank):
                A, B = layer.lora.factors()
                layer.lora.A, layer.lora.B = nn.Parameter(A), nn.Parameter(B)
                swap_class(layer.lora, LowRank)
        super().before_merge(backbone)

    def use(self, sizes: Sizes, backbone: Backbone | None = None) -> None:
        """Use a sub-net from now on.

        Args:
            sizes: Size of each block by kind; a kind that is missing has its largest sizes.
            backbone: Adapted backbone; by default that of this module.
        """
        for kind, blocks in modules_of_kinds(backbone or self.backbone).items():
            for number, modules in enumerate(blocks.values()):
                for module in modules:
                    module.size = sizes[kind][number] if kind in sizes else module.largest
                    if kind == "prompt":
                        module.length = module.size

    def draw(self, random: Random) -> Sizes:
        """Draw the sizes of a sub-net."""
        return {kind: self.draw_kind(random, len(blocks)) for kind, blocks in modules_of_kinds(self.backbone).items()}

    def draw_kind(self, random: Random, blocks: int, kept: tuple[int, ...] = ()) -> list[int]:
        """Draw the sizes of the blocks of one kind.

        Args:
            random: Source of the draws.
            blocks: Number of blocks.
            kept: Sizes of the first blocks, which are not drawn anew.
        """
        used = random.choice(self.noah_blocks or sorted({max(blocks * part // 4, 1) for part in range(1, 5)}))
        sizes = [*kept, *(random.choice(self.noah_sizes) for _ in range(used - len(kept)))][:used]
        return sizes + [0] * (blocks - used)

    def options_of(self, sizes: Sizes) -> dict[str, Any]:
        """Options with which ``--method adapter+lora+vpt`` trains a sub-net anew.

        Args:
            sizes: Size of each block by kind.
        """
        lists = {"adapter": "adapter_dims", "prompt": "prompt_lengths"}
        options: dict[str, Any] = {option: sizes[kind] for kind, option in lists.items() if kind in sizes}
        blocks = modules_of_kinds(self.backbone).get("lora", {})
        sizes_of = {
            module: size
            for modules, size in zip(blocks.values(), sizes.get("lora", []), strict=True)
            for module in modules
        }
        names = {name.removesuffix(".lora"): sizes_of.get(module) for name, module in self.backbone.named_modules()}
        ranks = {name: size for name, size in names.items() if size is not None}
        return options | ({"lora_ranks": ranks} if ranks else {})

    def count(self) -> int:
        """Number of parameters of the sub-net in use, without the head."""
        kinds = modules_of_kinds(self.backbone).values()
        return sum(module.count() for blocks in kinds for modules in blocks.values() for module in modules)

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        if self.training:
            step = 0 if self._trainer is None else self.trainer.global_step
            self.use(self.draw(Random(derived_seed(step))))  # by the step alone: equal on all ranks and after a resume
        return super().terms(batch)

    def train(self, mode: bool = True) -> Self:
        """Set the mode. An evaluation uses the chosen sub-net, or the largest one."""
        super().train(mode)
        if self.adapted and not mode:
            self.use(self.chosen)
        return self


def block_of(name: str) -> str:
    """Name of the block of a module: ``blocks.3`` of ``blocks.3.attn.qkv.lora``."""
    found = re.match(r"(.*\.)?\w*\d+(?=\.|$)", name)
    return found.group() if found else name


def modules_of_kinds(backbone: Backbone) -> dict[str, dict[str, list[Any]]]:
    """Sliced modules by kind and by name of their block, first to last."""
    found: dict[str, dict[str, list[Any]]] = {}
    for kind, (_, sliced) in SLICED.items():
        for name, module in backbone.named_modules():
            if isinstance(module, sliced):
                found.setdefault(kind, {}).setdefault(block_of(name), []).append(module)
    return found
