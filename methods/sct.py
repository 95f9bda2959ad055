"""SCT: A Simple Baseline for Parameter-Efficient Fine-Tuning via Salient Channels (arXiv:2309.08513).

``x_S' = x_S + s (W x_S + b)`` for the K channels S of a block with the largest class-aware norm.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from backbones.anatomy import call_qkv
from backbones.blocks import MLP_OUTPUTS, SEQUENCES, constant_blocks, layers_named
from backbones.inject import AdapterModule, Backbone, check_free, detach, modules_with
from callbacks.scoring.class_scorer import ClassSquares
from callbacks.scoring.report import Scored
from callbacks.scoring.scorers import Scorer
from lightning_modules.batch import Batch
from lightning_modules.task import Task
from methods.core.selective import Selective

PARTS = {"q": 0, "v": 2}  # thirds of the fused qkv output that are tuned


class SalientLinear(AdapterModule):
    """Adds ``scale * (W x_S + b)`` to the salient channels S of a feature, where ``x_S`` are their K values.

    Args:
        channels: Indices S (K,), ascending.
        init: Initial W: ``trunc_normal`` (std 0.02) or ``zeros``.
        scale: Factor s.
        scale_on_x: Whether s scales x_S instead of the update: ``s x_S + W x_S + b``.
    """

    channels: Tensor

    def __init__(self, channels: Tensor, init: str, scale: float, scale_on_x: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(len(channels), len(channels))
        self.scale, self.scale_on_x = scale, scale_on_x
        # rebuilt from the selection, which the checkpoint holds already
        self.register_buffer("channels", channels.long(), persistent=False)
        self.stream: Tensor | None = None  # block input between the two hooks of one forward pass
        nn.init.zeros_(self.linear.bias)
        if init == "zeros":
            nn.init.zeros_(self.linear.weight)
        else:
            nn.init.trunc_normal_(self.linear.weight, std=0.02)

    def update(self, x: Tensor) -> Tensor:
        """Update of the salient channels x (..., K)."""
        y = self.linear(x)
        return y + (self.scale - 1) * x if self.scale_on_x else self.scale * y

    def keep_input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.stream = args[0]

    def stream_hook(self, module: nn.Module, args: tuple[Any, ...], branch: Tensor) -> Tensor:
        """New output of the branch, whose sum with the kept x is the updated residual stream."""
        assert self.stream is not None, "norm1 was not called before the attention"
        x = self.stream.index_select(-1, self.channels) + branch.index_select(-1, self.channels)
        self.stream = None
        return branch.index_add(-1, self.channels, self.update(x).to(branch.dtype))

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        x = output.index_select(-1, self.channels)
        return output.index_add(-1, self.channels, self.update(x).to(output.dtype))

    def merge_into(self, layer: Any) -> None:
        """Merge into the rows S of the layer before: W' = (I + P M P^T) W and b' = (I + P M P^T) b + P c."""
        change = self.scale * self.linear.weight
        if self.scale_on_x:
            change = self.linear.weight + (self.scale - 1) * torch.eye(len(change), device=change.device)
        shift = self.linear.bias * (1 if self.scale_on_x else self.scale)
        layer.weight.index_add_(0, self.channels, change @ layer.weight[self.channels])
        if layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros_like(layer.weight[:, 0]))
        layer.bias.index_add_(0, self.channels, change @ layer.bias[self.channels] + shift)


class SCT(Selective):
    """Salient channel tuning (Zhao et al., IJCV 2023, arXiv:2309.08513).

    Args:
        sct_channels: Number K of salient channels per block.
        sct_mode: Tuned feature. ``attn``: the residual stream after the attention (all published numbers). ``mlp``:
            the output of the MLP. ``qkv``: queries and values.
        sct_scale: Factor s of the update. The paper lists one for each dataset, which the released code ignores.
        sct_scale_on_x: Whether s scales the channels instead of the update.
        sct_init: Initial W. ``trunc_normal``: std 0.02, as published. ``zeros``: zero, so that training starts from
            exactly the frozen backbone.
        sct_importance: Importance of a channel. ``l2_class_aware``: mean over classes of the L2 norm of its values (the
            method). The paper's comparisons: ``l2``, the L2 norm over all images; ``random``.
    """

    mergeable = False  # True unless sct_mode=attn
    unmergeable = "it changes the residual stream, which no weight of a ViT can"
    scorer = ClassSquares

    def __init__(
        self,
        sct_channels: int = 96,
        sct_mode: Literal["attn", "mlp", "qkv"] = "attn",
        sct_scale: float = 1.0,
        sct_scale_on_x: bool = False,
        sct_init: Literal["trunc_normal", "zeros"] = "trunc_normal",
        sct_importance: Literal["l2_class_aware", "l2", "random"] = "l2_class_aware",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if getattr(self, "num_classes", None) is None:
            raise ValueError(f"SCT averages scores over classes, and {type(self).__name__} has none: use gps or sara")
        if sct_channels < 1:
            raise ValueError(f"sct_channels={sct_channels}: expected at least 1 channel")
        self.sct_channels, self.sct_mode, self.sct_importance = sct_channels, sct_mode, sct_importance
        self.sct_scale, self.sct_scale_on_x, self.sct_init = sct_scale, sct_scale_on_x, sct_init
        self.mergeable = sct_mode != "attn"

    @classmethod
    def refusal(cls, task: type[Task]) -> str:
        reason = f"SCT averages scores over the classes of images, and {task.targets} have none: use gps or sara"
        return super().refusal(task) if task.targets == "labels" else reason

    def blocks(self, backbone: Backbone) -> dict[str, Any]:
        """Transformer blocks by name."""
        blocks = constant_blocks(backbone, "SCT tunes channels behind the attention of each block")
        if self.sct_mode == "qkv" and not all(isinstance(b, SEQUENCES) and b.attn.qkv is not None for b in blocks):
            raise ValueError(
                f"sct_mode='qkv': {type(backbone).__name__} has windows, which hide the image that a token is of, or "
                "no fused qkv layer; use attn or mlp"
            )
        if self.sct_mode == "mlp" and not all(layers_named(block.mlp, MLP_OUTPUTS) for block in blocks):
            raise ValueError(
                f"sct_mode='mlp': {type(backbone).__name__} has MLPs without a last linear layer; use attn"
            )
        return {name: m for name, m in backbone.named_modules() if any(m is block for block in blocks)}

    # scoring

    def build_scorer(self) -> Scorer:
        prefix = getattr(self.backbone, "num_prefix_tokens", 0)  # a network without tokens has none
        num_classes: Any = self.num_classes
        return ClassSquares(self.backbone, self.score_targets(), num_classes, prefix)

    def score_targets(self) -> list[str]:
        # mlp tunes the branch, but the released code scores the output of the whole block
        tap = {"attn": "{}.norm2:input", "mlp": "{}", "qkv": "{}.attn.qkv"}[self.sct_mode]
        return [tap.format(name) for name in self.blocks(self.backbone)]

    @property
    def score_data(self) -> dict[str, Any]:
        return {"batch_size": 50}

    def score_key(self) -> str:
        return f"{super().score_key()} {self.sct_mode}"

    def score_loss(self, batch: Batch) -> None:
        with torch.no_grad():
            self.features(batch.inputs)

    def importances(self, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """Importances (C,) of channels by block name; with the mode ``qkv`` by ``<block>.q`` and ``<block>.v``."""
        present = scores["images"] > 0
        generator = torch.Generator().manual_seed(0)
        importances: dict[str, Tensor] = {}
        for name, target in zip(self.blocks(self.backbone), self.score_targets(), strict=True):
            squares = scores[target]  # (classes, channels)
            importance = squares[present].sqrt().mean(0)
            if self.sct_importance == "l2":
                importance = squares.sum(0).sqrt()
            elif self.sct_importance == "random":
                importance = torch.rand(importance.shape, generator=generator)
            if self.sct_mode == "qkv":
                thirds = importance.chunk(3)
                importances |= {f"{name}.{part}": thirds[third] for part, third in PARTS.items()}
            else:
                importances[name] = importance
        return importances

    def select(self, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.top(importance) for name, importance in self.importances(scores).items()}

    def score_rows(self, scores: dict[str, Tensor]) -> list[Scored]:
        assert self.selection is not None
        chosen = self.selection
        return [Scored(n, i, len(chosen[n]), channels=chosen[n]) for n, i in self.importances(scores).items()]

    def top(self, importance: Tensor) -> Tensor:
        """Indices (K,) of the most important channels, ascending. Ties go to the lower index."""
        if self.sct_channels > len(importance):
            raise ValueError(f"sct_channels={self.sct_channels}: the backbone has only {len(importance)} channels")
        return importance.sort(descending=True, stable=True).indices[: self.sct_channels].sort().values.to(torch.int32)

    # training

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        assert self.selection is not None
        call_qkv(backbone)
        for name, block in self.blocks(backbone).items():
            if self.sct_mode == "attn":
                op = self.add(block, "sct", self.selection[name])
                block.norm1.register_forward_pre_hook(op.keep_input)
                block.drop_path1.register_forward_hook(op.stream_hook)
            elif self.sct_mode == "mlp":
                op = self.add(block.mlp, "sct", self.selection[name])
                block.mlp.register_forward_hook(op.hook)
            else:
                qkv = block.attn.qkv
                for part, third in PARTS.items():
                    channels = self.selection[f"{name}.{part}"] + third * (qkv.out_features // 3)
                    qkv.register_forward_hook(self.add(qkv, f"sct_{part}", channels).hook)

    def add(self, module: Any, name: str, channels: Tensor) -> SalientLinear:
        check_free(module, name)
        # the scale of queries and values is always 1
        scale = (1.0, False) if self.sct_mode == "qkv" else (self.sct_scale, self.sct_scale_on_x)
        op = SalientLinear(channels, self.sct_init, *scale)
        module.add_module(name, op)
        return op

    def merge_into(self, backbone: Backbone) -> None:
        for name in ("sct", "sct_q", "sct_v"):
            for module in modules_with(backbone, name):
                op = detach(module, name)
                assert isinstance(op, SalientLinear)
                op.merge_into(layers_named(module, MLP_OUTPUTS)[-1] if name == "sct" else module)
        call_qkv(backbone, False)
        super().merge_into(backbone)
