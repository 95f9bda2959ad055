"""Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning (arXiv:2303.08566).

``W = W0 + B A`` for a matrix with many sensitive entries, else ``W = W0 + M * dW``; the sensitivity is ``sum g^2``.
"""

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.anatomy import ends, linear_layers, reads_bare_weight, stem_parameters
from backbones.inject import Backbone, attach, detach, modules_with
from callbacks.scoring.report import Scored
from callbacks.scoring.scorers import SquaredGradients
from lightning_modules.batch import Batch
from methods.core.selective import Selective
from methods.layers.sparse import merge_entries, train_entries
from methods.layers.spt_budget import Granularity, Part, sweep
from methods.layers.spt_modules import Adapters, Blocks, ParallelLoRA, TokenDtype, module_size

POOLED = (nn.Linear, nn.Conv2d, nn.LayerNorm)  # layers whose parameters are compared
CANDIDATES = ("q", "k", "v", "proj", "fc1", "fc2")  # linear layers that can get a module


class SPT(Selective):
    """Sensitivity-aware parameter-efficient fine-tuning (He et al., ICCV 2023, arXiv:2303.08566).

    The most sensitive entries of the backbone are marked. A matrix with many marked entries gets a module; marked
    entries of other matrices train alone. The pool has the linear layers, convolutions and LayerNorms behind the stem.
    A layer gets no module if the attention uses its weight without a call of the layer.

    Args:
        spt_kind: Kind of the added modules. ``lora``: low-rank updates parallel to q, k, v, proj, fc1 and fc2.
            ``adapter``: bottlenecks after these layers.
        spt_budget: Trained parameters in millions, without the head.
        spt_rank: Rank of a LoRA or width of an adapter.
        spt_alpha: Threshold of a module: a matrix gets one if its marked entries are at least 1/alpha of the module's
            parameters.
        spt_beta: Threshold of a vector: all its entries train if at least 1/beta of them are marked.
        spt_granularity: Trained parts. ``both``: modules, whole vectors and single entries. ``structured_only``:
            modules and whole vectors. ``unstructured_only``: single entries.
        spt_init: Initial last matrix of a module. ``zero_up``: zero, so that training starts from exactly the frozen
            backbone. ``official_trunc002``: normal of std 0.02, as in the published runs, which did not zero it.
        spt_train_norm_sparse: Whether single entries of norms train. The original counts them, but does not train them.
        spt_dropout: Dropout probability of the input of a module, except on ``proj``.
        spt_drop_path: Probability that a module skips a sample.
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
        """Parts of all compared tensors, in model order; a fused layer gives one part each for q, k and v."""
        candidates = linear_layers(self.backbone, tuple(self.head_names))
        heads = tuple(f"{name.partition('.')[0]}." for name in self.head_names)  # with the norm beside a classifier
        scored = set(self.used_names()) - stem_parameters(self.backbone)
        parts = []
        for path, module in self.backbone.named_modules():
            if not isinstance(module, POOLED) or f"{path}.".startswith(heads):
                continue
            above, _, last = path.rpartition(".")
            blocks = ["q", "k", "v"] if is_fused(path, module) else [last]
            called = path in candidates and not reads_bare_weight(self.backbone, path)
            for i, block in enumerate(blocks):
                for kind, tensor in module.named_parameters(recurse=False):
                    if f"{path}.{kind}" not in scored:
                        continue
                    size, vector, added = tensor.numel() // len(blocks), tensor.dim() == 1, 0
                    if not vector and called and block in CANDIDATES:
                        rows = len(tensor) // len(blocks)
                        added = module_size(self.spt_kind, self.spt_rank, block, tensor.shape[1], rows)
                    name = f"{above}.{block}.{kind}".removeprefix(".")
                    parts.append(Part(name, f"{path}.{kind}", i * size, size, vector, added))
        return parts

    def score_targets(self) -> list[str]:
        """Names of the scored parameters of the backbone, in model order."""
        return list(dict.fromkeys(part.parameter for part in self.pool()))

    @property
    def score_data(self) -> dict[str, Any]:
        """Scored batches: the first 512 images, in the order of the files, without augmentation."""
        return {"batch_size": 32, "max_batches": 16}

    def score_loss(self, batch: Batch) -> Tensor:
        """Cross entropy through the fresh head, without label smoothing; the loss of a task without labels."""
        labels = batch.targets
        return F.cross_entropy(self(batch.inputs).float(), labels) if self.targets == "labels" else self.loss(batch)

    def select(self, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """Spend the budget on the entries with the largest sums of squared gradients.

        Args:
            scores: Sums in fp32 on the CPU, one tensor of the parameter's shape for each name of ``score_targets``.

        Returns:
            ``structured/<layer>``: rank of its module; ``q``, ``k`` and ``v`` are thirds of a fused ``qkv``.
            ``whole/<parameter>``: empty tensor for a parameter that trains in full. ``entries/<parameter>``: ascending
            flat indices (int32) of the trained entries of other parameters.

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
        """Whether marked entries of a part train; see ``spt_train_norm_sparse``."""
        layer = self.backbone.get_submodule(part.parameter.rpartition(".")[0])
        return self.spt_train_norm_sparse or isinstance(layer, (nn.Linear, nn.Conv2d))

    @property
    def class_token(self) -> int:
        """Number of parameters of the class token, which always trains."""
        token = getattr(self.backbone, "cls_token", None)
        return 0 if token is None else token.numel()

    def chosen(self, kind: str) -> dict[str, Tensor]:
        """Tensors of the selection of one kind (``structured``, ``whole`` or ``entries``), by name."""
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
            # sorted, because a file may have another order of q, k and v, and the factors follow the rows
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


def is_fused(path: str, layer: nn.Module) -> bool:
    """Whether a layer is a fused ``qkv`` whose thirds are q, k and v."""
    return ends(path, "qkv") and isinstance(layer, nn.Linear) and layer.out_features == 3 * layer.in_features


def place(backbone: Backbone, name: str) -> tuple[str, tuple[int, int]]:
    """Layer and rows of a name of the selection; ``q``, ``k`` and ``v`` are thirds of a fused ``qkv``."""
    above, _, block = name.rpartition(".")
    fused = f"{above}.qkv".removeprefix(".")
    if block in ("q", "k", "v") and fused in dict(backbone.named_modules()):
        size = backbone.get_submodule(fused).out_features // 3
        first = "qkv".index(block) * size
        return fused, (first, first + size)
    return name, (0, backbone.get_submodule(name).out_features)
