"""SPT: modules and single entries where the loss is most sensitive to a weight."""

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.anatomy import FROZEN, ends, linear_layers, reads_bare_weight
from backbones.inject import Backbone, attach, detach, modules_with
from callbacks.scoring.report import Scored
from callbacks.scoring.scorers import SquaredGradients
from lightning_modules.batch import Batch
from methods.core.selective import Selective
from methods.layers.sparse import SPARSE, merge_entries, train_entries
from methods.layers.spt_budget import Granularity, Part, sweep
from methods.layers.spt_modules import Adapters, Blocks, ParallelLoRA, TokenDtype

CANDIDATES = ("q", "k", "v", "proj", "fc1", "fc2")  # linear layers that can get a module


class SPT(Selective):
    """Sensitivity-aware parameter-efficient fine-tuning (He et al., ICCV 2023, arXiv:2303.08566).

    Where many of the most sensitive entries fall into one matrix, a module takes their place; elsewhere they train
    alone. Layers without a form for single entries (layer scales, position biases, layers whose bare weight is read)
    are not in the pool.

    Args:
        spt_kind: Modules that are added: a ``lora`` beside q, k, v, proj, fc1, fc2, or an ``adapter`` behind them.
        spt_budget: Millions of parameters that are to train, without the head.
        spt_rank: Rank of a LoRA or width of an adapter.
        spt_alpha: A matrix gets its module from 1/alpha of that module's parameters in marked entries on.
        spt_beta: A vector trains as a whole from 1/beta of its entries on.
        spt_granularity: ``structured_only`` trains no single entries, ``unstructured_only`` nothing but them.
        spt_init: ``zero_up`` starts from exactly the frozen backbone; in ``official_trunc002`` the last matrix of a
            module is not zero, as in the published runs, whose init routine came too late.
        spt_train_norm_sparse: Whether single entries of norms train, which the original counts but leaves out.
        spt_dropout: Dropout probability of what a module sees, except on ``proj``.
        spt_drop_path: Probability with which a module leaves out a sample.
    """

    unmergeable = "adapters are not linear; spt_kind=lora merges"
    scorer = SquaredGradients
    budget_unit: ClassVar[float] = 1e6  # trained parameters in one unit of spt_budget

    def __init__(
        self,
        spt_kind: Literal["lora", "adapter"] = "lora",
        spt_budget: float = 0.4,
        spt_rank: int = 8,
        spt_alpha: float = 10.0,
        spt_beta: float = 5.0,
        spt_granularity: Granularity = "both",
        spt_init: Literal["zero_up", "official_trunc002"] = "zero_up",
        spt_train_norm_sparse: bool = True,
        spt_dropout: float = 0.1,
        spt_drop_path: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value in {"budget": spt_budget, "rank": spt_rank, "alpha": spt_alpha, "beta": spt_beta}.items():
            if value <= 0:
                raise ValueError(f"spt_{name}={value}: expected a positive number")
        for name, value in {"dropout": spt_dropout, "drop_path": spt_drop_path}.items():
            if not 0 <= value < 1:
                raise ValueError(f"spt_{name}={value}: expected a probability of at least 0 and below 1")
        self.spt_kind, self.spt_budget, self.spt_rank = spt_kind, spt_budget, spt_rank
        self.spt_alpha, self.spt_beta, self.spt_granularity = spt_alpha, spt_beta, spt_granularity
        self.spt_init, self.spt_train_norm_sparse = spt_init, spt_train_norm_sparse
        self.spt_dropout, self.spt_drop_path = spt_dropout, spt_drop_path
        self.mergeable = spt_kind == "lora"

    # choice

    def pool(self) -> list[Part]:
        """The tensors that are compared, in model order, with q, k and v of a fused layer one after the other."""
        candidates = linear_layers(self.backbone, tuple(self.head_names))
        parts = []
        for path, module in self.backbone.named_modules():
            bare = ends(path, "qkv") and reads_bare_weight(self.backbone, path)
            if type(module) not in SPARSE or bare or any(word in path for word in FROZEN):
                continue
            above, _, last = path.rpartition(".")
            blocks = ["q", "k", "v"] if ends(path, "qkv") else [last]
            for i, block in enumerate(blocks):
                for kind, tensor in module.named_parameters(recurse=False):
                    size, vector, added = tensor.numel() // len(blocks), tensor.dim() == 1, 0
                    if not vector and path in candidates and block in CANDIDATES:
                        added = self.module_size(block, tensor.shape[1], len(tensor) // len(blocks))
                    name = f"{above}.{block}.{kind}".removeprefix(".")
                    parts.append(Part(name, f"{path}.{kind}", i * size, size, vector, added))
        return parts

    def module_size(self, block: str, dim_in: int, dim_out: int) -> int:
        """Parameters of the module that a block of rows of that name would get."""
        if self.spt_kind == "lora":
            return self.spt_rank * (dim_in + dim_out)
        seen = dim_in if block == "proj" else dim_out
        return self.spt_rank * (seen + dim_out) + self.spt_rank + dim_out

    def score_targets(self) -> list[str]:
        """Names of the backbone's parameters that are to be scored, in model order."""
        return list(dict.fromkeys(part.parameter for part in self.pool()))

    @property
    def score_data(self) -> dict[str, Any]:
        """Which batches are scored: the first 512 images, in the order of the files, without augmentation."""
        return {"batch_size": 32, "max_batches": 16}

    def score_loss(self, batch: Batch) -> Tensor:
        """Cross entropy through the fresh head; smoothed labels are for the training alone."""
        return F.cross_entropy(self(batch.inputs).float(), batch.targets)

    def select(self, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """Spend the budget on the entries with the largest sums of squared gradients.

        Args:
            scores: Those sums in fp32 on the CPU for each of ``score_targets``, of the parameter's shape.

        Returns:
            ``structured/<layer>`` with the rank of its module, where ``q``, ``k`` and ``v`` stand for thirds of a
            fused ``qkv``; ``whole/<parameter>`` with nothing for each parameter that trains in full; and
            ``entries/<parameter>`` with ascending flat indices (int32) where only some entries do.

        Raises:
            ValueError: If scores are missing, of a wrong shape or all zero, or if the budget cannot be met.
        """
        parts = self.pool()
        shapes = {name: self.backbone.get_parameter(name).shape for name in self.score_targets()}
        wrong = [name for name, shape in shapes.items() if name not in scores or scores[name].shape != shape]
        if wrong:
            raise ValueError(f"no scores of the right shape for {', '.join(wrong[:5])}: score all of score_targets()")
        flat = [scores[part.parameter].flatten()[part.start : part.start + part.size] for part in parts]
        found = sweep(
            parts, flat, self.spt_alpha, self.spt_beta, self.class_token, self.budget_unit, self.spt_granularity
        )
        step = found.step_for_budget(self.spt_budget)

        selection: dict[str, Tensor] = {}
        single = {part: entries for part, entries in found.entries(step).items() if self.trains_entries(part)}
        for part in found.dense_parts(step):
            if part.vector:
                single[part] = torch.arange(part.size)
            else:
                selection[f"structured/{part.name.removesuffix('.weight')}"] = torch.tensor([self.spt_rank])
        for name, shape in shapes.items():
            pieces = [single[part] + part.start for part in parts if part.parameter == name and part in single]
            if sum(map(len, pieces)) == shape.numel():
                selection[f"whole/{name}"] = torch.empty(0)
            elif pieces:
                selection[f"entries/{name}"] = torch.cat(pieces).to(torch.int32)
        return selection

    def score_rows(self, scores: dict[str, Tensor]) -> list[Scored]:
        entries, whole, modules = (self.chosen(kind) for kind in ("entries", "whole", "structured"))
        rows = []
        for part in self.pool():
            score, last = scores[part.parameter], part.start + part.size
            values = score.flatten()[part.start : last].view(-1 if part.vector else (-1, score.shape[-1]))
            module = part.name.removesuffix(".weight") in modules
            single = entries.get(part.parameter, torch.empty(0))
            count = int(((single >= part.start) & (single < last)).sum())
            if module or part.parameter in whole:
                count = part.module if module else part.size
            rows.append(Scored(part.name, values, count, module))
        return rows

    def trains_entries(self, part: Part) -> bool:
        """Whether marked entries of a part train: the original leaves out those of norms, but counts them."""
        layer = self.backbone.get_submodule(part.parameter.rpartition(".")[0])
        return self.spt_train_norm_sparse or isinstance(layer, (nn.Linear, nn.Conv2d))

    @property
    def class_token(self) -> int:
        """Parameters of the class token, which trains in any case."""
        token = getattr(self.backbone, "cls_token", None)
        return 0 if token is None else token.numel()

    def chosen(self, kind: str) -> dict[str, Tensor]:
        """One kind of the selection, by name."""
        if self.selection is None:
            raise ValueError(f"{type(self).__name__} has no selection: score the backbone first")
        return {n.removeprefix(f"{kind}/"): t for n, t in self.selection.items() if n.startswith(f"{kind}/")}

    # model

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        train_entries(backbone, self.chosen("entries"))
        ranks: dict[str, int] = {}
        layers: dict[str, Blocks] = {}
        for name, rank in self.chosen("structured").items():
            path, rows = place(backbone, name)
            ranks[path] = int(rank)
            layers.setdefault(path, {})[name.rpartition(".")[2]] = rows
        kind: type[ParallelLoRA] | type[Adapters] = ParallelLoRA if self.spt_kind == "lora" else Adapters
        for path, blocks in layers.items():
            linear = backbone.get_submodule(path)
            # a file may hold q, k and v in another order; the factors stand in that of the rows
            blocks = dict(sorted(blocks.items(), key=lambda block: block[1]))
            op = kind(linear, blocks, ranks[path], self.spt_dropout, self.spt_drop_path)
            if self.spt_init == "official_trunc002":
                op.reset()
            attach(linear, "spt", op)
        if self.class_token and hasattr(backbone, "pos_drop"):
            attach(backbone.pos_drop, "spt_dtype", TokenDtype())

    def trainable_names(self) -> Iterable[str]:
        return [*self.chosen("whole"), *(["cls_token"] if self.class_token else [])]

    def merge_into(self, backbone: Backbone) -> None:
        merge_entries(backbone)
        for linear in modules_with(backbone, "spt"):
            op: Any = detach(linear, "spt")
            linear.weight.copy_(op.merge_into(linear.weight))
        for module in modules_with(backbone, "spt_dtype"):
            detach(module, "spt_dtype")
        super().merge_into(backbone)


def place(backbone: Backbone, name: str) -> tuple[str, tuple[int, int]]:
    """The layer and the rows that a name means: ``q``, ``k`` and ``v`` are thirds of a fused ``qkv`` beside them."""
    above, _, block = name.rpartition(".")
    fused = f"{above}.qkv".removeprefix(".")
    if block in ("q", "k", "v") and fused in dict(backbone.named_modules()):
        size = backbone.get_submodule(fused).out_features // 3
        first = "qkv".index(block) * size
        return fused, (first, first + size)
    return name, (0, backbone.get_submodule(name).out_features)
